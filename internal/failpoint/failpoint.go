//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A rule acts at the n-th hit of a name.
type rule struct {
	name  string // "*" is every name
	after string // counts only once this name was hit; empty: from the beginning
	at    int    // 1 is the first hit; 0 is every hit
	act   string
	hits  int
}

var (
	mu    sync.Mutex
	hits  = map[string]int{}
	rules = parse(os.Getenv("PGRUNBOOK_FAILPOINTS"))
	trace = os.Getenv("PGRUNBOOK_FAILPOINT_TRACE") // file that every hit is appended to
)

// Enabled reports whether failpoints are compiled in.
const Enabled = true

// Hit passes a boundary. Rules come from PGRUNBOOK_FAILPOINTS, "name@n:act" or "after/name@n:act"
// separated by ";": kill (SIGKILL), stop (SIGSTOP, continued from outside or never), sleep=1s, panic,
// wait=FILE (makes FILE.here and goes on when somebody has made FILE).
func Hit(name string) {
	mu.Lock()
	hits[name]++
	record(name, hits[name])
	f := acts[name]
	var act string
	for i := range rules {
		r := &rules[i]
		if r.name != name && r.name != "*" || r.after != "" && hits[r.after] == 0 {
			continue
		}
		if r.hits++; r.at == 0 || r.at == r.hits {
			act = r.act
		}
	}
	mu.Unlock()
	if f != nil {
		f()
	}
	if act != "" {
		do(name, act)
	}
}

func record(name string, n int) {
	if trace == "" {
		return
	}
	f, err := os.OpenFile(trace, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(f, "%s %d\n", name, n)
	_ = f.Close()
}

func do(name, act string) {
	verb, arg, _ := strings.Cut(act, "=")
	switch verb {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "stop":
		// To this very thread: the process may give a signal of its own to a thread that waits for a
		// core, and this one would go on meanwhile, past the boundary.
		runtime.LockOSThread()
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGSTOP)
		runtime.UnlockOSThread()
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err != nil {
			panic(err)
		}
		time.Sleep(d)
	case "wait":
		if err := os.WriteFile(arg+".here", nil, 0o600); err != nil {
			panic(err)
		}
		for _, err := os.Stat(arg); err != nil; _, err = os.Stat(arg) {
			time.Sleep(2 * time.Millisecond)
		}
	case "panic":
		panic("failpoint " + name)
	default:
		panic("unknown failpoint act " + act)
	}
}

func parse(s string) []rule {
	var list []rule
	for _, part := range strings.Split(s, ";") {
		if part == "" {
			continue
		}
		where, act, ok := strings.Cut(part, ":")
		if !ok {
			panic("malformed failpoint " + part)
		}
		r := rule{name: where, act: act}
		if after, name, ok := strings.Cut(where, "/"); ok {
			r.after, r.name, where = after, name, name
		}
		if name, n, ok := strings.Cut(where, "@"); ok {
			at, err := strconv.Atoi(n)
			if err != nil {
				panic(err)
			}
			r.name, r.at = name, at
		}
		list = append(list, r)
	}
	return list
}
