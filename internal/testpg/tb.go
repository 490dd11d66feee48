package testpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Full says that the tests take their full form: every case that does not need hours. Continuous
// integration does; make test takes a share of the costly cases, to stay under 20 minutes on two
// cores.
func Full() bool { return os.Getenv("PGRUNBOOK_FULL") != "" || os.Getenv("PGRUNBOOK_SOAK") != "" }

// Some is every case in the full form, and the first one, which is to be the hardest, in the short.
func Some[T any](cases ...T) []T {
	if Full() {
		return cases
	}
	return cases[:1]
}

// TB is what the helpers need of testing.TB.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// shared holds this test binary's clusters by major.
var shared struct {
	sync.Mutex
	clusters map[int]*Cluster
}

// Shared returns this test binary's cluster of a major, started on first use.
// Tests that stop, pause or reconfigure a server start their own instead.
// Main removes it.
func Shared(t TB, major int) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if c := shared.clusters[major]; c != nil {
		return c
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a download may be needed
	defer cancel()
	c, err := Start(ctx, Options{Major: major})
	if err != nil {
		t.Fatalf("no PostgreSQL %d to test with: %v", major, err)
		return nil
	}
	if shared.clusters == nil {
		shared.clusters = map[int]*Cluster{}
	}
	shared.clusters[major] = c
	return c
}

// StartT starts a cluster of the test's own and removes it at its end. The
// server's log is shown when the start fails.
func StartT(t TB, o Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("%v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Errorf("removing a test cluster: %v", err)
		}
	})
	return c
}

// TempDir makes a directory that the server's user can reach (t.TempDir's is
// private to its owner), for Options.Dir, tablespaces and mounts.
func TempDir(t TB) string {
	t.Helper()
	acc, err := serverAccount()
	if err != nil {
		t.Fatalf("%v", err)
		return ""
	}
	w, err := newWorkdir(acc)
	if err != nil {
		t.Fatalf("%v", err)
		return ""
	}
	t.Cleanup(func() {
		if err := w.remove(); err != nil {
			t.Errorf("removing a test directory: %v", err)
		}
	})
	return w.path
}

// PairMajors are the majors that Pair uses: 15 to 18, or PGRUNBOOK_TEST_PAIR,
// like "12:18".
func PairMajors() (source, target int, err error) {
	s := orDefault(os.Getenv("PGRUNBOOK_TEST_PAIR"), "15:18")
	from, to, ok := strings.Cut(s, ":")
	source, errFrom := strconv.Atoi(from)
	target, errTo := strconv.Atoi(to)
	if err := errors.Join(errFrom, errTo); err != nil || !ok {
		return 0, 0, fmt.Errorf("PGRUNBOOK_TEST_PAIR is %q: want two majors like 12:18", s)
	}
	return source, target, nil
}

// Pair returns the URLs of two fresh databases on shared clusters of two majors.
func Pair(t TB) (sourceURL, targetURL string) {
	t.Helper()
	source, target, err := PairMajors()
	if err != nil {
		t.Fatalf("%v", err)
		return "", ""
	}
	return NewDB(t, Shared(t, source)), NewDB(t, Shared(t, target))
}

var dbCount atomic.Int64

// NewDB makes a fresh database and returns the superuser's URL. When the test ends it must have no
// session or lock of ours; it is dropped with whoever is still connected.
func NewDB(t TB, c *Cluster) string {
	t.Helper()
	name := fmt.Sprintf("t%d_%s", dbCount.Add(1), simpleName(t.Name()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.createDB(ctx, name, ""); err != nil {
		t.Fatalf("making a test database: %v", err)
		return ""
	}
	return c.until(t, name)
}

// NewDBWith is NewDB for tests that all begin with the same definitions and rows: these are made once, in a
// database that is then copied.
func NewDBWith(t TB, c *Cluster, script string) string {
	t.Helper()
	name := fmt.Sprintf("t%d_%s", dbCount.Add(1), simpleName(t.Name()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.copyDB(ctx, name, script); err != nil {
		t.Fatalf("making a test database: %v", err)
		return ""
	}
	return c.until(t, name)
}

// Adopt gives the superuser's URL of a database that the test has made itself, by a name or for an owner that it needs.
// It ends as one of NewDB does.
func Adopt(t TB, c *Cluster, name string) string {
	t.Helper()
	return c.until(t, name)
}

// until gives a database's URL and drops it when the test ends.
func (c *Cluster) until(t TB, name string) string {
	t.Helper()
	t.Cleanup(func() {
		if !c.Running() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		endIdle(ctx, c.URL(name, c.Superuser))
		left, err := c.leaks(ctx, name, 5*time.Second)
		if err != nil {
			t.Errorf("%v", err)
		}
		if len(left) > 0 {
			t.Errorf("left behind in database %s:\n  %s", name, strings.Join(left, "\n  "))
		}
		if err := c.DropDB(ctx, name); err != nil {
			t.Errorf("dropping a test database: %v", err)
		}
	})
	return c.URL(name, c.Superuser)
}

func simpleName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(s))
	return s[:min(len(s), 40)]
}
