package dump

import (
	"fmt"
	"os"
	"path/filepath"
)

// workDir is a private directory of this process. Its lock file tells one that is in use from one
// that a killed process left behind.
type workDir struct {
	path string
	lock *os.File
}

// newWorkDir makes a directory below parent, empty for the system's, and removes what dead
// processes left there.
func newWorkDir(parent, prefix string) (*workDir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	sweep(parent, prefix)
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("making a directory for the dump: %w", err)
	}
	d := &workDir{path: path}
	if d.lock, err = os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		_, err = tryLock(d.lock)
	}
	if err != nil {
		_ = d.remove()
		return nil, fmt.Errorf("locking the directory for the dump: %w", err)
	}
	return d, nil
}

func (d *workDir) remove() error {
	if d == nil {
		return nil
	}
	err := os.RemoveAll(d.path)
	if d.lock != nil {
		_ = d.lock.Close()
	}
	return err
}

// sweep removes directories whose lock nobody holds. Those of other users stay.
func sweep(parent, prefix string) {
	old, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return
	}
	for _, path := range old {
		f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR, 0o600)
		if err != nil {
			continue // not ours, or not locked yet by one that is being made
		}
		if free, err := tryLock(f); err == nil && free {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
