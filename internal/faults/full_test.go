package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// smallDisk mounts a file system of its own below a directory that servers can reach.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir := filepath.Join(testpg.TempDir(t), "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=777", megabytes)); err != nil {
		t.Fatalf("mounting a tmpfs for the tests of a full disk (run them as root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// fill leaves nothing free; the function that it returns makes room again.
func fill(t *testing.T, disk string) (free func()) {
	t.Helper()
	path := filepath.Join(disk, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// back starts a server that gave up, as its administrator would.
func (r *rig) back(c *testpg.Cluster) {
	r.t.Helper()
	for range 100 {
		if !c.Running() {
			r.must(c.Start(r.t.Context()))
			return
		}
		if conn, err := pgx.Connect(r.t.Context(), c.ConnString()); err == nil {
			_ = conn.Close(r.t.Context())
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.t.Fatalf("the server does not come back\n%s", c.Log())
}

// apart moves a directory of a server to another disk.
func (r *rig) apart(c *testpg.Cluster, name, disk string) {
	r.t.Helper()
	r.must(c.Stop(r.t.Context(), testpg.Fast))
	from, to := filepath.Join(c.DataDir, name), filepath.Join(disk, name)
	st, err := os.Stat(from)
	r.must(err)
	r.must(os.CopyFS(to, os.DirFS(from)))
	owner := st.Sys().(*syscall.Stat_t)
	r.must(filepath.WalkDir(to, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(owner.Uid), int(owner.Gid)), os.Chmod(path, 0o700))
	}))
	r.must(os.RemoveAll(from))
	r.must(os.Symlink(to, from))
	r.must(c.Start(r.t.Context()))
}

// TestF16TargetDiskFull fills the target's disk, or the one of its WAL, while rows are loaded and
// while they are applied. The run stops and says so; with room made, the same command goes on.
func TestF16TargetDiskFull(t *testing.T) {
	for _, c := range []struct {
		name string
		wal  bool
	}{{"F16 the data directory", false}, {"F16 the WAL", true}} {
		if c.wal && !soak() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			sourceMajor, targetMajor, err := testpg.PairMajors()
			if err != nil {
				t.Fatal(err)
			}
			disk := smallDisk(t, 400)
			o := testpg.Options{Major: targetMajor, Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"}}
			if !c.wal {
				o.Dir = disk
			}
			target := testpg.StartT(t, o)
			r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, sourceMajor)), testpg.NewDB(t, target))
			if c.wal {
				r.apart(target, "pg_wal", disk)
			}
			for _, at := range []string{"load.claimed@3", "pass.read@1"} {
				name, n, _ := strings.Cut(at, "@")
				p := r.start(at+":sleep=2s", applyArgs...)
				if !p.passed(name, int(n[0]-'0')) {
					t.Fatalf("the runner did not pass %s", at)
				}
				free := fill(t, disk)
				r.sql(r.source, "UPDATE app.item SET name = name || repeat('.', 200)") // more than fits into what a table has left
				o := p.end()
				if o.code == 0 || o.signal != 0 {
					t.Fatalf("%s: %s on a full disk", at, o)
				}
				if !strings.Contains(target.Log(), "No space left on device") {
					t.Fatalf("%s: the disk was not full", at)
				}
				if r.acceptable(o); !c.wal && !(strings.Contains(o.text, "No space left on device") && strings.Contains(strings.ToLower(o.text), "make room")) {
					t.Errorf("%s: the message does not say that the disk is full, and what to do\n%s", at, o.text)
				}
				r.writing(0)
				free()
				r.back(target)
			}
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}

// TestF16SourceDiskFull: deltas share the source's disk with the application. The limit acts before;
// without it the application's own writes fail, say so, and lose nothing, until there is room.
func TestF16SourceDiskFull(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	disk := smallDisk(t, 400)
	source := testpg.StartT(t, testpg.Options{Major: sourceMajor, Dir: disk, Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"}})
	r := newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, testpg.Shared(t, targetMajor)))
	const limit = "limit \"delta_size\" {\n  max  = \"64KiB\"\n  then = \"stop\"\n}\n\ncopy {"
	r.edit("copy {", limit)
	r.finally("apply", "--auto-approve", "--until", "capture")
	r.sql(r.source, "UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'")
	o := r.run("", applyArgs...)
	if o.code != 1 || !regexp.MustCompile(`delta_size: it is \d+(\.\d+)?[KM]iB, over 64KiB`).MatchString(o.text) {
		t.Fatalf("deltas over their limit: %s, want 1 with their size and the limit\n%s", o, o.text)
	}
	r.writing(0) // before the disk is full

	r.edit("64KiB", "10GiB")
	p := r.start("load.claimed@3:sleep=3s", applyArgs...)
	if !p.passed("load.claimed", 3) {
		t.Fatal("the runner copied nothing")
	}
	free := fill(t, disk)
	refused := func() int { return r.ledger.Stats().Errors["53100"] }
	for deadline := time.Now().Add(2 * time.Minute); refused() == 0 && source.Running() && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(context.Background(), r.source)
		if err != nil {
			continue
		}
		_, _ = conn.Exec(context.Background(), "UPDATE app.item SET name = name || repeat('.', 200)") // uses up what tables have left
		_ = conn.Close(context.Background())
	}
	if refused() == 0 && source.Running() {
		t.Fatal("the application wrote on on a full disk")
	}
	if !strings.Contains(source.Log(), "No space left on device") {
		t.Fatal("the source's disk was not full")
	}
	free()
	r.back(source)
	r.writing(0)
	r.acceptable(p.end())
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF17Limits takes connections, lock slots and temporary space away. The message names what to
// set, and the same command goes on afterwards.
func TestF17Limits(t *testing.T) {
	t.Parallel()
	r, clusters := ownServers(t, map[string]string{"max_connections": "40", "max_locks_per_transaction": "10", "max_prepared_transactions": "0"})
	says := func(o outcome, words ...string) {
		t.Helper()
		if o.code == 0 || o.signal != 0 {
			t.Fatalf("%s, want an error with %q\n%s", o, words, o.text)
		}
		for _, w := range words {
			if !strings.Contains(o.text, w) {
				t.Errorf("%s: the message does not say %q\n%s", o, w, o.text)
			}
		}
	}
	{ // lock slots
		for first := 0; first < 120; first += 20 {
			var sql strings.Builder
			if first == 0 {
				sql.WriteString("CREATE TABLE app.wide (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);")
			}
			for n := first; n < first+20; n++ {
				fmt.Fprintf(&sql, "CREATE TABLE app.wide_%d PARTITION OF app.wide FOR VALUES FROM (%d) TO (%d);", n, n*10, n*10+10)
			}
			r.sql(r.source, sql.String())
			r.sql(r.source, fmt.Sprintf("INSERT INTO app.wide SELECT g, g FROM generate_series(%d, %d) g", first*10, first*10+199))
		}
		o := r.run("", applyArgs...)
		says(o, "max_locks_per_transaction")
		if !regexp.MustCompile(`max_locks_per_transaction = \d+`).MatchString(o.text) {
			t.Errorf("it is not said to what:\n%s", o.text)
		}
		for _, c := range clusters {
			r.must(c.Configure(t.Context(), map[string]string{"max_locks_per_transaction": "200"}))
			r.must(c.Restart(t.Context()))
		}
	}
	{ // connections
		p := r.start("load.claimed@3:sleep=1s", "apply", "--auto-approve", "--until", "copy")
		if !p.passed("load.claimed", 3) {
			t.Fatal("the runner copied nothing")
		}
		var idle []*pgx.Conn
		for {
			conn, err := pgx.Connect(t.Context(), r.target)
			if sqlState(err) == "53300" {
				break
			}
			r.must(err)
			idle = append(idle, conn)
		}
		r.sql(r.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgrunbook%load%'")
		// Where it lacks one it says so, for some minutes; a person may have seen enough.
		lacks := func() bool { return strings.Contains(p.said(), "too many clients") }
		for deadline := time.Now().Add(3 * time.Minute); !lacks() && p.state() != "Z"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it goes on for ever:\n%s", p.said())
			}
		}
		if lacks() {
			p.signal(syscall.SIGINT)
		}
		if o := p.end(); o.code != 130 {
			r.acceptable(o)
		}
		// What the runner had is taken as well.
		for {
			conn, err := pgx.Connect(t.Context(), r.target)
			if err != nil {
				break
			}
			idle = append(idle, conn)
		}
		says(r.run("", applyArgs...), "too many", "max_connections", "Lower workers")
		for _, conn := range idle {
			r.must(conn.Close(t.Context()))
		}
	}
	{ // temporary space
		r.sql(r.source, "INSERT INTO app.item (name, net) SELECT repeat(md5(g::text), 4), 1 FROM generate_series(1, 20000) g")
		r.sql(r.target, "ALTER ROLE postgres SET temp_file_limit = '64kB'; ALTER ROLE postgres SET maintenance_work_mem = '64kB'; ALTER ROLE postgres SET work_mem = '64kB'")
		r.sql(r.source, "ALTER ROLE postgres SET temp_file_limit = '64kB'; ALTER ROLE postgres SET work_mem = '64kB'")
		says(r.run("", applyArgs...), "temp_file_limit")
		for _, url := range []string{r.source, r.target} {
			r.sql(url, "ALTER ROLE postgres RESET ALL")
		}
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}
