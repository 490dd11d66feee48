package steps

import (
	"fmt"
	"os"
	"path/filepath"
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

// killMarked ends every process whose environment says that a switch step of this run started it in an epoch from
// first to last, in whatever process group it is by now. One that is just being forked is met by another look.
// What other steps left running, a tunnel say, is none of its.
func killMarked(run string, first, last int64) {
	for range 5 {
		found := false
		files, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range files {
			text, err := os.ReadFile(file) // of others it cannot be read, and of one that has ended
			if at, ours := switchEpoch(string(text), run); err != nil || !ours || at < first || at > last {
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

// switchEpoch reads from an environment in which epoch of a run a switch step made it.
func switchEpoch(environ, run string) (epoch int64, ours bool) {
	step := false
	for word := range strings.SplitSeq(environ, "\x00") {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "PGRUNBOOK_STEP":
			step = strings.HasPrefix(value, fmt.Sprintf("%s.%s.", engine.PhaseCutover, Switch))
		case "PGRUNBOOK_RUN":
			ours = value == run
		case "PGRUNBOOK_EPOCH":
			epoch, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	return epoch, ours && step && epoch > 0
}
