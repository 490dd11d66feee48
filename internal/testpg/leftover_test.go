package testpg_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// planted is what a package's tests may leave behind, with what is said of it.
var planted = map[string]struct {
	plant func(t *testing.T) error
	says  string
}{
	"session": {func(t *testing.T) error {
		_, err := pgx.Connect(context.Background(), testpg.Shared(t, 18).ConnString()+"&application_name=pgrunbook-planted")
		return err
	}, "of pgrunbook-planted"},
	"lock": {func(t *testing.T) error {
		conn, err := pgx.Connect(context.Background(), testpg.Shared(t, 18).ConnString())
		if err == nil {
			_, err = conn.Exec(context.Background(), "SELECT pg_advisory_lock(4711)")
		}
		return err
	}, "advisory lock 0/4711/"},
	"prepared": {func(t *testing.T) error {
		conn, err := pgx.Connect(context.Background(), testpg.Shared(t, 18).ConnString())
		if err == nil {
			_, err = conn.PgConn().Exec(context.Background(), "BEGIN; CREATE TABLE planted (); PREPARE TRANSACTION 'planted'").ReadAll()
		}
		return err
	}, "prepared transaction planted"},
	"database": {func(t *testing.T) error {
		_, err := pgx.Connect(context.Background(), testpg.NewDB(t, testpg.Shared(t, 18))+"&application_name=pgrunbook-planted")
		return err
	}, "left behind in database t1_testplants"},
	"adopted": {func(t *testing.T) error {
		c := testpg.Shared(t, 18)
		if err := c.Exec(t.Context(), "postgres", "CREATE DATABASE planted"); err != nil {
			return err
		}
		_, err := pgx.Connect(context.Background(), testpg.Adopt(t, c, "planted")+"&application_name=pgrunbook-planted")
		return err
	}, "left behind in database planted"},
	"server": {func(*testing.T) error {
		_, err := testpg.Start(context.Background(), testpg.Options{Major: 18})
		return err
	}, "directory of a server "},
	"file": {func(*testing.T) error {
		_, err := os.MkdirTemp("", "planted-")
		return err
	}, "planted-"},
	"process": {func(*testing.T) error {
		return exec.Command("sleep", "1000").Start() // longer than it is waited for
	}, ": sleep 1000"},
}

var plantedProcess = regexp.MustCompile(`process (\d+): sleep 1000`)

// TestPlants is the other half of the next test: it leaves behind what it is told to.
func TestPlants(t *testing.T) {
	for name := range strings.FieldsSeq(os.Getenv("TESTPG_PLANT")) {
		if err := planted[name].plant(t); err != nil {
			t.Errorf("planting a %s: %v", name, err)
		}
	}
}

// TestLeftBehind: whatever the tests of a package leave behind fails it, and is named. The short form
// plants all at once.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	var all []string
	for name := range planted {
		all = append(all, name)
	}
	slices.Sort(all)
	runs := [][]string{all}
	if testpg.Full() {
		runs = append(runs, nil)
		for _, name := range all {
			runs = append(runs, []string{name})
		}
	}
	for _, names := range runs {
		t.Run(strings.Join(names, "+"), func(t *testing.T) {
			t.Parallel()
			base := ownBase(t)
			cmd := exec.Command(os.Args[0], "-test.run=^TestPlants$")
			cmd.Env = append(os.Environ(), "TESTPG_PLANT="+strings.Join(names, " "), "PGRUNBOOK_TEST_DIR="+base, "TMPDIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if failed := err != nil; failed != (len(names) > 0) {
				t.Errorf("with %v left behind the tests ended with %v:\n%s", names, err, out)
			}
			for _, name := range names {
				if !strings.Contains(string(out), planted[name].says) {
					t.Errorf("a %s was left behind, and nobody says %q:\n%s", name, planted[name].says, out)
				}
			}
			for _, m := range plantedProcess.FindAllStringSubmatch(string(out), -1) {
				pid, err := strconv.Atoi(m[1])
				if err == nil {
					err = syscall.Kill(pid, syscall.SIGKILL)
				}
				if err != nil {
					t.Error(err)
				}
			}
			eventually(t, "its servers have ended", func() bool { return processesIn(base) == 0 })
		})
	}
}

var startsServers = regexp.MustCompile(`testpg\.(Shared|Pair|NewDB|Start|StartT|StartBouncer|StartBouncerT)\(`)

// TestPackagesLookForLeaks: each package whose tests start servers looks for what they left.
func TestPackagesLookForLeaks(t *testing.T) {
	text := map[string]string{} // of the tests, by folder
	err := filepath.WalkDir("../..", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		text[filepath.Dir(path)] += string(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for dir, tests := range text {
		if !startsServers.MatchString(tests) {
			continue
		}
		packages++
		if !strings.Contains(tests, "testpg.Main(") && !strings.Contains(tests, "testpg.Run(") {
			t.Errorf("the tests of %s start servers, and their TestMain does not call testpg.Main", dir)
		}
	}
	if packages < 10 {
		t.Errorf("%d packages start servers: the search is broken", packages)
	}
}
