package testpg_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestOwner is the other half of the tests below: started by them as a process
// of its own, it starts a server, says where, and waits to be killed.
func TestOwner(t *testing.T) {
	if os.Getenv("TESTPG_OWNER") == "" {
		return
	}
	c, err := testpg.Start(t.Context(), testpg.Options{Major: 18})
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("TESTPG_OWNER") == "paused" {
		if err := c.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprintf(os.Stdout, "OWNER %s %s\n", c.ConnString(), c.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until killed
		t.Fatal(err)
	}
}

// owner starts TestOwner and returns its process, server and data directory.
// Processes with the same base sweep for each other.
func owner(t *testing.T, how, base string) (process *exec.Cmd, url, dataDir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOwner$", "-test.v")
	cmd.Env = append(os.Environ(), "TESTPG_OWNER="+how, "PGRUNBOOK_TEST_DIR="+base)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "OWNER "); ok {
			url, dataDir, _ = strings.Cut(rest, " ")
			return cmd, url, dataDir
		}
	}
	t.Fatal("the process started no server")
	return nil, "", ""
}

// ownBase keeps other test binaries from sweeping before this test looks.
func ownBase(t *testing.T) string {
	t.Helper()
	base := filepath.Join(testpg.TempDir(t), "b")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	return base
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the killed process ended with %v", err)
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// processesIn counts processes whose working directory is dir.
func processesIn(dir string) int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	n := 0
	for _, l := range links {
		if cwd, err := os.Readlink(l); err == nil && strings.HasPrefix(cwd, dir) {
			n++
		}
	}
	return n
}

func TestServerDiesWithItsOwner(t *testing.T) {
	ctx := testContext(t)
	process, url, dataDir := owner(t, "running", ownBase(t))
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	kill(t, process)
	eventually(t, "the server has ended", func() bool { return processesIn(dataDir) == 0 })
	if _, err := conn.Exec(ctx, "SELECT 1"); err == nil {
		t.Error("a session outlived the server's owner")
	}
}

func TestNextStartSweepsWhatAKilledOwnerLeft(t *testing.T) {
	base := ownBase(t)
	process, _, dataDir := owner(t, "paused", base)
	kill(t, process)
	if processesIn(dataDir) == 0 { // stopped processes take no signal but SIGKILL
		t.Fatal("the paused server did not outlive its owner: nothing to sweep")
	}
	next, _, _ := owner(t, "running", base)
	defer kill(t, next)
	if n := processesIn(dataDir); n != 0 {
		t.Errorf("%d processes of the paused server are left", n)
	}
	if _, err := os.Stat(dataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its data directory: %v", err)
	}
}
