package dump

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Tools is one directory with pg_dump and pg_restore of one version.
type Tools struct {
	Dir     string
	Major   int
	Minor   int
	Version string // as printed, like "18.4"
	Warning string // empty, or why a newer minor is wanted
}

// binDirsVar is a colon list of directories that are looked at first.
const binDirsVar = "PGRUNBOOK_PG_BIN_DIRS"

// leastMinor are the minors of August 2026 that hold the fixes for dumps of a hostile server
// (CVE-2025-8714, CVE-2025-8715, CVE-2026-18408, CVE-2026-6464).
var leastMinor = map[int]int{14: 24, 15: 19, 16: 15, 17: 11, 18: 5}

// oldestMajor has \restrict-free archives and every option that this package uses.
const oldestMajor = 14

// Find looks for the programs in PGRUNBOOK_PG_BIN_DIRS, on PATH and in Debian's directories. Among
// those not older than the source, the target's own major is best, then one whose archives restore
// there without a setting that it does not know, else the newest. A missing or too old program is an
// error with what to install.
func Find(ctx context.Context, sourceMajor, targetMajor int) (Tools, error) {
	all, err := candidates(ctx)
	if err != nil {
		return Tools{}, err
	}
	least := max(sourceMajor, oldestMajor)
	best := choose(all, least, targetMajor)
	if best.Dir != "" {
		if want := leastMinor[best.Major]; best.Minor < want {
			best.Warning = fmt.Sprintf("pg_dump %s in %s lacks the fixes of %d.%d against definitions that a hostile source could hide in a dump; install a newer minor", best.Version, best.Dir, best.Major, want)
		}
		return best, nil
	}
	cause := fmt.Errorf("no pg_dump and pg_restore were found")
	if len(all) > 0 {
		newest := slices.MaxFunc(all, func(a, b Tools) int { return cmp.Compare(a.Major, b.Major) })
		cause = fmt.Errorf("the newest pg_dump here is %s in %s and cannot read a server of major %d", newest.Version, newest.Dir, sourceMajor)
	}
	return Tools{}, &engine.Error{
		Op: "finding PostgreSQL's client programs", Err: cause,
		Hint: fmt.Sprintf("Install postgresql-client-%d, or name the directory of a newer one in %s.", max(least, targetMajor), binDirsVar),
	}
}

func choose(all []Tools, least, targetMajor int) Tools {
	var best Tools
	for _, t := range all {
		if t.Major >= least && (best.Dir == "" || better(t, best, targetMajor)) {
			best = t
		}
	}
	return best
}

func better(a, b Tools, targetMajor int) bool {
	switch own, atomic := a.Major == targetMajor, a.Atomic(targetMajor); {
	case own != (b.Major == targetMajor):
		return own
	case atomic != b.Atomic(targetMajor):
		return atomic
	}
	return a.Major > b.Major || a.Major == b.Major && a.Minor > b.Minor
}

// debianWrapper is a script that chooses among the programs in Debian's directories, by settings and at each
// call anew: what it says of its version need not hold for the dump.
const debianWrapper = "pg_wrapper"

// candidates are all directories with both programs.
func candidates(ctx context.Context) ([]Tools, error) {
	dirs := filepath.SplitList(os.Getenv(binDirsVar))
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return nil, &engine.Error{Op: "reading " + binDirsVar, Err: err, Hint: "Correct or unset " + binDirsVar + "."}
		}
	}
	if p, err := exec.LookPath("pg_dump"); err == nil {
		if real, err := filepath.EvalSymlinks(p); err == nil && filepath.Base(real) != debianWrapper {
			dirs = append(dirs, filepath.Dir(p))
			if filepath.Dir(real) != filepath.Dir(p) {
				dirs = append(dirs, filepath.Dir(real))
			}
		}
	}
	debian, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return nil, fmt.Errorf("looking for client programs: %w", err)
	}
	var all []Tools
	for _, dir := range append(dirs, debian...) {
		if t, ok := toolsIn(ctx, dir); ok {
			all = append(all, t)
		}
	}
	return all, nil
}

// versionPattern matches "pg_dump (PostgreSQL) 15.18 (Debian 15.18-1)" and "... 19beta1".
var versionPattern = regexp.MustCompile(`\(PostgreSQL\) ((\d+)(?:\.(\d+))?\w*)`)

// asked are the directories whose programs have said their version to this process, with the file's own time:
// a plan and the steps after it look again and again.
var asked sync.Map

type toolsAt struct {
	tools   Tools
	changed time.Time
}

func toolsIn(ctx context.Context, dir string) (Tools, bool) {
	var changed time.Time
	for _, program := range []string{"pg_dump", "pg_restore"} {
		st, err := os.Stat(filepath.Join(dir, program))
		if err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
			return Tools{}, false
		}
		if st.ModTime().After(changed) {
			changed = st.ModTime()
		}
	}
	if known, ok := asked.Load(dir); ok {
		if at, ok := known.(toolsAt); ok && at.changed.Equal(changed) {
			return at.tools, true
		}
	}
	t, ok := askVersion(ctx, dir)
	if ok {
		asked.Store(dir, toolsAt{t, changed})
	}
	return t, ok
}

func askVersion(ctx context.Context, dir string) (Tools, bool) {
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "pg_dump"), "--version").Output() //nolint:gosec // a directory that the user named, or the system's own
	if err != nil {
		return Tools{}, false
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return Tools{}, false
	}
	major, err := strconv.Atoi(string(m[2]))
	if err != nil {
		return Tools{}, false
	}
	minor := 0
	if len(m[3]) > 0 {
		if minor, err = strconv.Atoi(string(m[3])); err != nil {
			return Tools{}, false
		}
	}
	return Tools{Dir: dir, Major: major, Minor: minor, Version: string(m[1])}, true
}
