package histories_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// cost is processor time: of the harness, of what it ran (the program, pg_dump), and of the shared
// servers with the sessions that have ended.
type cost struct{ harness, program, servers time.Duration }

func (c cost) since(before cost, n int) string {
	each := func(now, then time.Duration) time.Duration {
		return ((now - then) / time.Duration(n)).Round(10 * time.Millisecond)
	}
	return fmt.Sprintf("processor time of each: harness %s, program %s, servers %s", each(c.harness, before.harness), each(c.program, before.program), each(c.servers, before.servers))
}

// spent is what was spent so far, as far as the system tells.
func spent(t *testing.T) (c cost) {
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	used := func(who int) time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	c.harness, c.program = used(syscall.RUSAGE_SELF), used(syscall.RUSAGE_CHILDREN)
	for _, major := range []int{from, to} {
		c.servers += serverTime(testpg.Shared(t, major).DataDir)
	}
	return c
}

// serverTime reads the fields utime to cstime of the postmaster (proc_pid_stat(5)), in ticks of 10 ms.
func serverTime(dataDir string) (sum time.Duration) {
	pid, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(pid), "\n")
	stat, err := os.ReadFile(filepath.Join("/proc", first, "stat"))
	_, rest, found := strings.Cut(string(stat), ") ")
	if fields := strings.Fields(rest); err == nil && found && len(fields) > 15 {
		for _, field := range fields[11:15] {
			n, _ := strconv.Atoi(field) // the system writes numbers
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}
