package testpg_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestClientsDumpANewerServer(t *testing.T) {
	ctx := testContext(t)
	c := testpg.Shared(t, 18)
	url := testpg.NewDB(t, c)
	dir, err := testpg.ClientBinDir(ctx, 18)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "psql"), "-XAtq", "-d", url, "-c", "CREATE TABLE dumped (a int)", "-c", "SELECT 6 * 7").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "42" {
		t.Fatalf("psql: %v: %s", err, out)
	}
	archive := filepath.Join(t.TempDir(), "archive")
	if out, err := exec.CommandContext(ctx, filepath.Join(dir, "pg_dump"), "-Fd", "-j2", "-f", archive, url).CombinedOutput(); err != nil {
		t.Fatalf("pg_dump: %v: %s", err, out)
	}
	to := testpg.NewDB(t, c)
	if out, err := exec.CommandContext(ctx, filepath.Join(dir, "pg_restore"), "-d", to, archive).CombinedOutput(); err != nil {
		t.Fatalf("pg_restore: %v: %s", err, out)
	}
	if got := queryOne(ctx, t, to, "SELECT to_regclass('public.dumped')::text"); got != "dumped" {
		t.Errorf("restored table is %q", got)
	}
}

func TestClientBinDirPrefersTheLowestThatDoes(t *testing.T) {
	ctx := testContext(t)
	low, err := testpg.ClientBinDir(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	high, err := testpg.ClientBinDir(ctx, 18)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(high, "pg_dump"), "--version").Output()
	if err != nil || !strings.Contains(string(out), " 18.") {
		t.Errorf("pg_dump for 18 says %q: %v", out, err)
	}
	if _, err := testpg.ClientBinDir(ctx, 99); err == nil || !strings.Contains(err.Error(), "PGRUNBOOK_PG_BIN_DIRS") {
		t.Errorf("clients of 99: %v, want a hint", err)
	}
	if strings.Contains(low, "clients/18") {
		t.Errorf("clients for 10 come from %s although an older major is here", low)
	}
}

func TestPgbenchIsHere(t *testing.T) {
	path, err := testpg.PgbenchPath(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(testContext(t), path, "--version").Output(); err != nil || !strings.HasPrefix(string(out), "pgbench") {
		t.Errorf("%s --version: %v: %s", path, err, out)
	}
}
