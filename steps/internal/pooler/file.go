package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// rewriteTries bounds how often a rewrite starts over because the file changed under it.
const rewriteTries = 3

// errEdited says that the file changed between reading and replacing it.
var errEdited = errors.New("the file is being changed by somebody else")

// rewrite replaces a file's text by edit's, in one rename, with owner and permissions kept. An edit
// by somebody else in between is not lost: edit gets the new text. A symbolic link stays one.
func rewrite(ctx context.Context, path string, edit func([]byte) ([]byte, error)) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := rewriteOnce(ctx, real, edit)
		if !errors.Is(err, errEdited) || try == rewriteTries {
			return err
		}
	}
}

func rewriteOnce(ctx context.Context, path string, edit func([]byte) ([]byte, error)) error {
	info, old, err := readFile(path)
	if err != nil {
		return err
	}
	text, err := edit(old)
	if err != nil || bytes.Equal(text, old) {
		return err
	}
	temp, err := writeTemp(path, info, text)
	if err != nil {
		return err
	}
	again, now, err := readFile(path)
	switch {
	case err != nil:
	case !os.SameFile(info, again) || !bytes.Equal(now, old):
		err = errEdited
	case ctx.Err() != nil: // too late for the hold: nothing may change behind its back
		err = ctx.Err()
	default:
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncFolder(filepath.Dir(path))
}

func readFile(path string) (os.FileInfo, []byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	text, err := os.ReadFile(path)
	return info, text, err
}

// tempPattern names temporary files; what a killed process left is swept by the next rewrite, since
// it holds the passwords of the file's entries.
func tempPattern(path string) string { return "." + filepath.Base(path) + ".pgrunbook-*" }

func writeTemp(path string, info os.FileInfo, text []byte) (_ string, err error) {
	stale, err := filepath.Glob(filepath.Join(filepath.Dir(path), tempPattern(path)))
	if err != nil {
		return "", err
	}
	for _, s := range stale {
		if st, err := os.Stat(s); err == nil && time.Since(st.ModTime()) > time.Minute {
			_ = os.Remove(s)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPattern(path))
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := keepOwner(f, info); err != nil {
		return "", fmt.Errorf("keeping the owner of %s: %w", path, err)
	}
	if err := f.Chmod(info.Mode().Perm()); err != nil {
		return "", err
	}
	if _, err := f.Write(text); err != nil {
		return "", err
	}
	return f.Name(), f.Sync()
}

// syncFolder makes a rename durable.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
