package faults_test

import (
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

// smallDisk mounts a file system of its own that belongs to the servers.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	parent := testpg.TempDir(t)
	st, err := os.Stat(parent)
	if err != nil {
		t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	dir := filepath.Join(parent, "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755,uid=%d,gid=%d", megabytes, owner.Uid, owner.Gid)); err != nil {
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
	from, to := filepath.Join(c.DataDir, name), filepath.Join(disk, filepath.Base(name))
	st, err := os.Stat(c.DataDir)
	r.must(err)
	r.must(os.MkdirAll(from, 0o700)) // the one for temporary files is made when it is needed
	r.must(os.CopyFS(to, os.DirFS(from)))
	owner := st.Sys().(*syscall.Stat_t)
	r.must(filepath.WalkDir(to, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(owner.Uid), int(owner.Gid)), os.Chmod(path, 0o700))
	}))
	r.must(os.RemoveAll(from))
	r.must(os.Symlink(to, from))
	r.must(c.Start(r.t.Context()))
}

// tablespaces puts a table, with its indexes, into a tablespace, which is in a directory of each side.
func (r *rig) tablespaces(dirs [2]string) {
	r.t.Helper()
	for i, url := range []string{r.source, r.target} {
		r.sql(url, "CREATE TABLESPACE apart LOCATION '"+dirs[i]+"'")
	}
	r.sql(r.source, "ALTER TABLE app.item SET TABLESPACE apart; ALTER INDEX app.item_pkey SET TABLESPACE apart; ALTER INDEX app.item_name SET TABLESPACE apart")
}

// exhaust writes WAL to a server until that has no room for more: it ends.
func (r *rig) exhaust(c *testpg.Cluster) {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), c.ConnString())
	r.must(err)
	for err == nil {
		_, err = conn.Exec(r.t.Context(), "SELECT pg_logical_emit_message(false, 'room', repeat('.', 1000000))")
	}
	_ = conn.Close(r.t.Context())
}

// needsSQL are indexes whose rows do not fit into the memory that a server gives them.
const needsSQL = `INSERT INTO app.item (name, net) SELECT repeat(md5(g::text), 4), 1 FROM generate_series(1, 20000) g`

// fullDisk is a place of the target that is full.
type fullDisk struct {
	name  string
	where string   // "" is all of it, else the directory, or the tablespace, on a disk of its own
	at    []string // the run gets there before
	says  string   // about the place, as a regular expression
}

const (
	tablespace = "tablespace"
	temporary  = "base/pgsql_tmp"
	wal        = "pg_wal"
)

var fullDisks = []fullDisk{
	{"F16 the data directory", "", []string{"load.claimed@3", "pass.read@1"}, `could not (extend|write) (to )?file "base/.*No space left on device`},
	{"F16 the WAL", wal, []string{"load.claimed@3", "pass.read@1"}, `on the target: .*is gone`}, // the server ends, and tells its log alone
	{"F16 a tablespace", tablespace, []string{"load.claimed@3", "pass.read@1"}, `could not (extend|write) (to )?file "pg_tblspc/.*No space left on device`},
	{"F16 temporary files", temporary, []string{"load.claimed@3"}, `could not write to file "base/pgsql_tmp/.*No space left on device`},
}

// TestF16TargetDiskFull fills the target's disk, or another one that it uses, while rows are loaded and
// while they are applied. The run stops and says so, and where; with room made, the same command goes on.
// How much it needs, it has said before.
func TestF16TargetDiskFull(t *testing.T) {
	for _, c := range fullDisks {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			sourceMajor, targetMajor := majors(t)
			room, disk := testpg.TempDir(t), smallDisk(t, cond(c.where == "" || c.where == wal, 400, 40))
			o := testpg.Options{Major: targetMajor, Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB", "maintenance_work_mem": "1MB"}}
			if c.where == "" {
				o.Dir = disk
			}
			target := testpg.StartT(t, o)
			r := newRigOn(t, testpg.NewDB(t, testpg.StartT(t, testpg.Options{Major: sourceMajor})), testpg.NewDB(t, target))
			switch c.where {
			case "":
			case tablespace:
				r.tablespaces([2]string{room, disk})
			default:
				r.apart(target, c.where, disk)
			}
			if c.where == temporary {
				r.sql(r.source, needsSQL)
			}
			for i, at := range c.at {
				name, n, _ := strings.Cut(at, "@")
				p := r.start(at+":sleep=2s", applyArgs...)
				if !p.passed(name, int(n[0]-'0')) {
					t.Fatalf("the runner did not pass %s", at)
				}
				free := fill(t, disk)
				if c.where == wal {
					r.exhaust(target)
				}
				r.sql(r.source, "UPDATE app.item SET name = name || repeat('.', 200) WHERE id <= 1500") // more than fits into what a table has left
				o := p.end()
				if o.code == 0 || o.signal != 0 {
					t.Fatalf("%s: %s on a full disk", at, o)
				}
				if !strings.Contains(target.Log(), "No space left on device") {
					t.Fatalf("%s: the disk was not full", at)
				}
				r.acceptable(o)
				said, _, _ := strings.Cut(o.text[strings.Index(o.text, " ERRO ")+1:], "\n")
				if !regexp.MustCompile(c.says).MatchString(said) {
					t.Errorf("%s: the message does not say %s: %s", at, c.says, said)
				}
				if !strings.Contains(said, "target") {
					t.Errorf("%s: the message does not say which side: %s", at, said)
				}
				if c.where != wal && !regexp.MustCompile(`(?i)(make room on the target at \S+, and|the target's disk is full: make room and) run the same command`).MatchString(o.text) {
					t.Errorf("%s: the message does not say what to do, and where\n%s", at, o.text)
				}
				if i == 0 && !regexp.MustCompile(`The target needs\s+about \d`).MatchString(o.text) {
					t.Errorf("the plan does not say how much room the target needs\n%s", o.text)
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
