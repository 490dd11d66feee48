package testpg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// clientPrograms are what a ClientBinDir holds at least.
var clientPrograms = []string{"pg_dump", "pg_restore", "psql"}

// ClientBinDir returns a directory with pg_dump, pg_restore and psql of at least
// minMajor: the lowest such major on this machine, else one downloaded from
// Debian. Only Debian and its children can download.
func ClientBinDir(ctx context.Context, minMajor int) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	if dir, err := localClients(ctx, cache, minMajor); dir != "" || err != nil {
		return dir, err
	}
	want := max(minMajor, slices.Min(clientMajors()))
	if clientSuites[want] == "" {
		return "", fmt.Errorf("getting clients of PostgreSQL %d: no pinned Debian release has them: install them and set PGRUNBOOK_PG_BIN_DIRS", minMajor)
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "clients.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if dir, err := localClients(ctx, cache, minMajor); dir != "" || err != nil { // another process was first
		return dir, err
	}
	if err := fetchClients(ctx, filepath.Join(cache, "clients"), want); err != nil {
		return "", fmt.Errorf("getting clients of PostgreSQL %d from Debian %s: %w", want, clientSuites[want], err)
	}
	return localClients(ctx, cache, minMajor)
}

func clientMajors() []int {
	var majors []int
	for major := range clientSuites {
		majors = append(majors, major)
	}
	slices.Sort(majors)
	return majors
}

// localClients returns the directory with the lowest sufficient major, or "".
func localClients(ctx context.Context, cache string, minMajor int) (string, error) {
	dirs, err := binDirs()
	if err != nil {
		return "", err
	}
	for _, major := range clientMajors() {
		dirs = append(dirs, clientBin(filepath.Join(cache, "clients"), major))
	}
	best, bestDir := 0, ""
	for _, dir := range dirs {
		if slices.ContainsFunc(clientPrograms, func(p string) bool { return !executable(dir, p) }) {
			continue
		}
		major, _, err := programVersion(ctx, filepath.Join(dir, "pg_dump"))
		if err != nil {
			return "", err
		}
		if major >= minMajor && (best == 0 || major < best) {
			best, bestDir = major, dir
		}
	}
	return bestDir, nil
}

func clientBin(clients string, major int) string {
	return filepath.Join(clients, fmt.Sprint(major), "bin")
}

// fetchClients unpacks postgresql-client-N of a newer Debian release with all
// libraries that it needs, libc and its loader included, so that nothing of this
// machine is touched and nothing of it is used. apt verifies signatures and sums.
func fetchClients(ctx context.Context, clients string, major int) error {
	for _, program := range []string{"apt-get", "dpkg"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: install the clients and set PGRUNBOOK_PG_BIN_DIRS", err)
		}
	}
	if err := os.MkdirAll(clients, 0o755); err != nil {
		return err
	}
	final := filepath.Dir(clientBin(clients, major))
	tmp, err := os.MkdirTemp(clients, ".download-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	debs, err := aptDownload(ctx, tmp, clientSuites[major], fmt.Sprintf("postgresql-client-%d", major))
	if err != nil {
		return err
	}
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for _, deb := range debs {
		if skipPackage.MatchString(filepath.Base(deb)) {
			continue
		}
		if _, err := run(ctx, tmp, "dpkg", "-x", deb, filepath.Join(tree, "root")); err != nil {
			return err
		}
	}
	if err := writeWrappers(tree, final, major); err != nil {
		return err
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(tree, final)
}

// skipPackage matches what Debian's wrapper scripts need and the programs do not.
var skipPackage = regexp.MustCompile(`^(perl|libperl|netbase|libdb5|libgdbm|postgresql-client-common|sensible-utils)`)

// aptDownload has apt fetch a package of a suite and all that it depends on, as
// if nothing were installed, and returns the files.
func aptDownload(ctx context.Context, dir, suite, pkg string) ([]string, error) {
	apt, err := aptIn(ctx, dir, "deb", suite)
	if err != nil {
		return nil, err
	}
	if _, err := run(ctx, dir, "apt-get", append(apt, "install", "--download-only", pkg)...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "cache/archives/*.deb"))
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get downloaded no package")
	}
	return debs, err
}

// aptIn gives the options with which apt-get knows nothing but one suite of Debian, packages (deb) or
// sources (deb-src), and keeps all that it writes in a directory. The suite's lists are there.
func aptIn(ctx context.Context, dir, kind, suite string) ([]string, error) {
	mirror, err := debianMirror()
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o750); err != nil {
			return nil, err
		}
	}
	source := fmt.Sprintf("%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", kind, mirror, suite)
	for name, text := range map[string]string{"sources.list": source, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	options := []string{
		"-q", "-y",
		"-o", "Dir::Etc::SourceList=" + filepath.Join(dir, "sources.list"),
		"-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::Etc::Preferences=/dev/null",
		"-o", "Dir::Etc::PreferencesParts=/dev/null",
		"-o", "Dir::State=" + filepath.Join(dir, "state"),
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::State::status=" + filepath.Join(dir, "state/status"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "APT::Sandbox::User=", // the directory is private
		"-o", "APT::Install-Recommends=false",
		"-o", "APT::Update::Error-Mode=any",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}
	_, err = run(ctx, dir, "apt-get", append(slices.Clone(options), "update")...)
	return options, err
}

// debianMirror is the mirror in the machine's own sources, so that a site's
// mirror or proxy is used here too.
func debianMirror() (string, error) {
	files, err := filepath.Glob("/etc/apt/sources.list.d/*")
	if err != nil {
		return "", err
	}
	pattern := regexp.MustCompile(`https?://[^\s]+/debian/?(\s|$)`)
	for _, file := range append([]string{"/etc/apt/sources.list"}, files...) {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		mirror := ""
		for lines := bufio.NewScanner(f); lines.Scan() && mirror == ""; {
			line := lines.Text()
			if !strings.HasPrefix(strings.TrimSpace(line), "#") {
				mirror = strings.TrimSpace(pattern.FindString(line))
			}
		}
		if err := f.Close(); err != nil {
			return "", err
		}
		if mirror != "" {
			return mirror, nil
		}
	}
	return "http://deb.debian.org/debian", nil
}

// writeWrappers makes bin/PROGRAM for every client program, which start the
// real one through its own loader and libraries.
func writeWrappers(tree, final string, major int) error {
	programs, err := filepath.Glob(filepath.Join(tree, "root/usr/lib/postgresql", fmt.Sprint(major), "bin/*"))
	if err != nil {
		return err
	}
	if len(programs) == 0 {
		return errors.New("the package holds no programs")
	}
	root := filepath.Join(final, "root")
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	loader, err := filepath.Glob(filepath.Join(tree, "root/usr/lib*/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
	if err != nil || len(loader) == 0 {
		return errors.Join(err, errors.New("the libc package holds no loader for x86-64"))
	}
	for _, p := range programs {
		name := filepath.Base(p)
		program := filepath.Join(root, "usr/lib/postgresql", fmt.Sprint(major), "bin", name)
		script := fmt.Sprintf("#!/bin/sh\nexec '%s/ld-linux-x86-64.so.2' --argv0 '%s' --library-path '%s' '%s' \"$@\"\n",
			strings.Replace(filepath.Dir(loader[0]), tree, final, 1), filepath.Join(final, "bin", name), lib, program)
		if err := writeFrom(filepath.Join(tree, "bin", name), strings.NewReader(script), 0o755); err != nil {
			return err
		}
	}
	return nil
}
