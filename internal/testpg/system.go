package testpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// need is a program that the tests use and the Debian packages that bring it.
type need struct {
	program  string
	found    func() bool
	packages []string
}

func onPath(program string) func() bool {
	return func() bool { _, err := exec.LookPath(program); return err == nil }
}

// systemNeeds are what a bare Debian lacks.
func systemNeeds(ctx context.Context) []need {
	return []need{
		{"gcc", onPath("gcc"), []string{"gcc", "libc6-dev"}}, // the race detector needs cgo, and servers a clock of their own
		{"npm", onPath("npm"), []string{"npm"}},
		{"pgbench", func() bool { _, err := PgbenchPath(ctx); return err == nil }, []string{"postgresql"}},
		{"isolationtester", func() bool { _, err := IsolationTester(ctx); return err == nil }, []string{"postgresql"}},
		bouncerNeed,
	}
}

// EnsureSystem installs the machine's missing programs (gcc, npm, Debian's
// PostgreSQL with pgbench, pgbouncer) with apt-get. It needs root; without, or
// with PGRUNBOOK_NO_APT set, it returns an error that says what to type.
func EnsureSystem(ctx context.Context, logf func(string, ...any)) error {
	return install(ctx, logf, systemNeeds(ctx))
}

// install brings what of the needs is missing.
func install(ctx context.Context, logf func(string, ...any), needs []need) error {
	var packages, programs []string
	for _, n := range needs {
		if !n.found() {
			packages, programs = append(packages, n.packages...), append(programs, n.program)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	what := "missing " + strings.Join(programs, ", ") + ": apt-get install " + strings.Join(packages, " ")
	if os.Geteuid() != 0 || os.Getenv("PGRUNBOOK_NO_APT") != "" || !onPath("apt-get")() {
		return errors.New(what)
	}
	logf("%s", what)
	if slices.Contains(packages, "postgresql") {
		if err := noMainCluster(); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"update"}, append([]string{"install", "-y", "--no-install-recommends"}, packages...)} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", what, err, out)
		}
	}
	if slices.Contains(packages, "pgbouncer") {
		// Debian's package starts a service; it is of no use to the tests. Where it was not
		// started there is nothing to stop.
		_ = exec.CommandContext(ctx, "invoke-rc.d", "pgbouncer", "stop").Run()
	}
	return nil
}

// noMainCluster keeps Debian's package from making and starting a server of its
// own (postgresql-common, createcluster.conf(5)).
func noMainCluster() error {
	const dir = "/etc/postgresql-common/createcluster.d"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("preparing the installation of PostgreSQL: %w", err)
	}
	path := filepath.Join(dir, "pgrunbook.conf")
	if err := os.WriteFile(path, []byte("create_main_cluster = false\n"), 0o644); err != nil {
		return fmt.Errorf("preparing the installation of PostgreSQL: %w", err)
	}
	return nil
}
