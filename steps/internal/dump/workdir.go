package dump

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
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
		return nil, &engine.Error{Op: "making a directory for the dump in", Object: parent, Err: err, Hint: elsewhere}
	}
	d := &workDir{path: path}
	if d.lock, err = os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		_, err = tryLock(d.lock)
	}
	if err != nil {
		_ = d.remove()
		return nil, &engine.Error{Op: "locking the directory for the dump in", Object: parent, Err: err, Hint: elsewhere}
	}
	return d, nil
}

// elsewhere is what helps where this machine's disk takes no file of ours.
const elsewhere = "Make room there, or set TMPDIR to a directory on another disk of this machine, and run the same command again."

// full tells a full disk of ours, which pg_dump writes to, from one of the server, which it reports.
func (d *workDir) full(err error) error {
	var failed *ProgramError
	if !errors.As(err, &failed) || !strings.Contains(failed.Output, "No space left on device") || strings.Contains(failed.Output, "ERROR:") {
		return nil
	}
	return &engine.Error{Op: "writing the dump in", Object: d.path, Err: err, Hint: elsewhere}
}

// unread is the error of a dump that cannot be listed right after it was written: where the disk has no room for what
// pg_dump writes last, which is all of a short dump, older ones end as if all were well.
func (d *workDir) unread(err error) error {
	var failed *ProgramError
	if !errors.As(err, &failed) {
		return err
	}
	return &engine.Error{Op: "reading the dump in", Object: d.path, Err: err, Hint: "The disk may be full. " + elsewhere}
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
