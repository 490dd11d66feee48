//go:build unix

package dump

import (
	"errors"
	"os"
	"syscall"
)

// tryLock takes the file's lock for as long as it is open; false means that another process has it.
func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
