package steps

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pgrunbook/pgrunbook/engine"
)

// groupAttr makes the command a process group of its own that ends when the runner is killed: a
// switch must not go on after the freeze that it belongs to is gone.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// killMarked ends every process whose environment says that a switch step of this run started it in an epoch, in
// whatever process group it is by now. One that is just being forked is met by another look. What other steps
// left running, a tunnel say, is none of its.
func killMarked(run string, epoch int64) {
	marks := []string{
		fmt.Sprintf("\x00PGRUNBOOK_STEP=%s.%s.", engine.PhaseCutover, Switch),
		"\x00PGRUNBOOK_RUN=" + run + "\x00",
		fmt.Sprintf("\x00PGRUNBOOK_EPOCH=%d\x00", epoch),
	}
	for range 5 {
		found := false
		files, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range files {
			text, err := os.ReadFile(file) // of others it cannot be read, and of one that has ended
			environ := "\x00" + string(text) + "\x00"
			if err != nil || slices.ContainsFunc(marks, func(m string) bool { return !strings.Contains(environ, m) }) {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
				found = true
			}
		}
		if !found {
			return
		}
	}
}
