package testpg

import (
	"archive/tar"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// suitesPackage is the source package whose own tests Suites unpacks, of a Debian release.
const (
	suitesPackage = "postgresql-15"
	suitesRelease = "bookworm"
)

// suiteFile matches what of the source tree is kept: the inputs of pg_regress and isolationtester.
var suiteFile = regexp.MustCompile(`/(src/test/(isolation/specs|isolation/isolation_schedule|regress/(sql|data|parallel_schedule)).*)$`)

// Suites returns a directory with PostgreSQL's own tests: src/test/isolation/specs and
// src/test/regress/sql, data and parallel_schedule, from Debian's source package, verified by apt.
func Suites(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "suites", suitesPackage)
	unlock, err := lockFile(ctx, filepath.Join(cache, "suites.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := fetchSuites(ctx, dir); err != nil {
		return "", fmt.Errorf("getting PostgreSQL's own tests from Debian's source package %s: %w", suitesPackage, err)
	}
	return dir, nil
}

// fetchSuites unpacks beside dir and renames into place, so that dir is complete or not there.
func fetchSuites(ctx context.Context, dir string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	apt, err := aptIn(ctx, tmp, "deb-src", suitesRelease)
	if err != nil {
		return err
	}
	if _, err := run(ctx, tmp, "apt-get", append(apt, "source", "--download-only", suitesPackage)...); err != nil {
		return err
	}
	tarballs, err := filepath.Glob(filepath.Join(tmp, "*.orig.tar.bz2"))
	if err != nil || len(tarballs) != 1 {
		return errors.Join(err, fmt.Errorf("apt-get brought %d tarballs, want one in bzip2", len(tarballs)))
	}
	tree := filepath.Join(tmp, "tree")
	if err := unpackSuites(tarballs[0], tree); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(tarballs[0]), err)
	}
	return os.Rename(tree, dir)
}

func unpackSuites(tarball, tree string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	files := 0
	for r := tar.NewReader(bzip2.NewReader(f)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if files == 0 {
				return errors.New("it holds no tests")
			}
			return nil
		}
		if err != nil {
			return err
		}
		m := suiteFile.FindStringSubmatch(h.Name)
		if m == nil || h.Typeflag != tar.TypeReg || !filepath.IsLocal(m[1]) {
			continue
		}
		if err := writeFrom(filepath.Join(tree, m[1]), r, 0o644); err != nil { // the server reads data files
			return err
		}
		files++
	}
}

// IsolationTester finds PostgreSQL's isolationtester of any major, which Debian's client package
// brings.
func IsolationTester(ctx context.Context) (string, error) {
	list, err := filepath.Glob("/usr/lib/postgresql/*/lib/pgxs/src/test/isolation/isolationtester")
	if err != nil {
		return "", err
	}
	if len(list) > 0 {
		return list[len(list)-1], nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, err := exec.LookPath("isolationtester")
	if err != nil {
		return "", fmt.Errorf("finding isolationtester: %w: apt-get install postgresql-client-15", err)
	}
	return path, nil
}
