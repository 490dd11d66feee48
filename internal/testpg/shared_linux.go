package testpg

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// idLine is where postmaster.pid has the key and the id of a server's System V shared memory, from 0 (PostgreSQL source,
// pidfile.h, LOCK_FILE_LINE_SHMEM_KEY). A server that was killed leaves both.
const idLine = 6

// sharedMemory gives the id of a segment that a killed server has left; false is none.
func sharedMemory(dataDir string) (int, bool) {
	b, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	lines := strings.Split(string(b), "\n")
	if err != nil || len(lines) <= idLine {
		return 0, false
	}
	words := strings.Fields(lines[idLine])
	if len(words) != 2 {
		return 0, false
	}
	id, err := strconv.Atoi(words[1])
	return id, err == nil
}

// freeShared removes that segment: a system has some thousands, and no server starts once they are used up.
func freeShared(dataDir string) {
	if id, ok := sharedMemory(dataDir); ok {
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) // gone already, or it was another system's
	}
}
