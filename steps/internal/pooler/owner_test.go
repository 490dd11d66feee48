package pooler

import (
	"os"
	"syscall"
)

// owner gives user and group of a file.
func owner(info os.FileInfo) [2]uint32 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return [2]uint32{}
	}
	return [2]uint32{st.Uid, st.Gid}
}
