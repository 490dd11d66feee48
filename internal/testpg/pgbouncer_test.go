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

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestBouncerServesAndDies(t *testing.T) {
	ctx := testContext(t)
	url := testpg.NewDB(t, testpg.Shared(t, 18))
	b := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"app": url}})
	got := queryOne(ctx, t, b.URL("app", "postgres")+"&default_query_exec_mode=exec", "SELECT current_database()::text")
	if !strings.Contains(url, "/"+got+"?") {
		t.Errorf("behind app is %q, want the database of %s", got, url)
	}
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(ctx, b.URL("app", "postgres")); err == nil {
		t.Error("a stopped pgbouncer takes connections")
	}
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(); err != nil || b.Running() {
		t.Errorf("killed: %v, running %v", err, b.Running())
	}
	if err := errors.Join(b.Remove(), b.Remove()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.ConfigFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are left: %v", err)
	}
}

func TestBouncerWithABrokenConfigIsAnError(t *testing.T) {
	_, err := testpg.StartBouncer(testContext(t), testpg.BouncerOptions{Raw: "app = host=\n"})
	if err == nil || !strings.Contains(err.Error(), "connection string") {
		t.Errorf("error %v, want pgbouncer's own words", err)
	}
}

// TestBouncerOwner is a process of its own, started by the test below and killed.
func TestBouncerOwner(t *testing.T) {
	if os.Getenv("TESTPG_BOUNCER_OWNER") == "" {
		return
	}
	b, err := testpg.StartBouncer(t.Context(), testpg.BouncerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(os.Stdout, "OWNER", filepath.Dir(b.ConfigFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until killed
		t.Fatal(err)
	}
}

func TestBouncerDiesWithItsOwner(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestBouncerOwner$", "-test.v")
	cmd.Env = append(os.Environ(), "TESTPG_BOUNCER_OWNER=1", "PGRUNBOOK_TEST_DIR="+ownBase(t))
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
	dir := ""
	for lines := bufio.NewScanner(out); dir == "" && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "OWNER "); ok {
			dir = rest
		}
	}
	if dir == "" || processesIn(dir) != 1 {
		t.Fatalf("no pgbouncer runs in %q", dir)
	}
	kill(t, cmd)
	eventually(t, "pgbouncer has ended", func() bool { return processesIn(dir) == 0 })
}
