package testpg

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

//go:embed clock/clock.c
var clockSource []byte

func (c *Cluster) clockPath() string { return filepath.Join(c.root.path, "clock") }

// clockEnv lets a server read the time of day from its own clock. What PostgreSQL measures by a monotonic clock, and the
// times of files, stay what they are.
func (c *Cluster) clockEnv() ([]string, error) {
	if !c.opts.Clock {
		return nil, nil
	}
	library := filepath.Join(c.root.path, "clock.so")
	if _, err := os.Stat(library); err != nil {
		if err := c.makeClock(library); err != nil {
			return nil, err
		}
	}
	return []string{"LD_PRELOAD=" + library, "PGRUNBOOK_CLOCK=" + c.clockPath()}, nil
}

// makeClock builds the library, with the machine's time.
func (c *Cluster) makeClock(library string) error {
	source := filepath.Join(c.root.path, "clock.c")
	if err := os.WriteFile(source, clockSource, 0o644); err != nil {
		return fmt.Errorf("making the server's clock: %w", err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", library, source).CombinedOutput(); err != nil { //nolint:noctx // a blink
		return fmt.Errorf("making the server's clock (apt-get install gcc libc6-dev): %w\n%s", err, out)
	}
	return c.SetClock(0)
}

// SetClock lets the server's clock go ahead of the machine's, or behind it where ahead is negative, from now on. That
// of one that runs jumps.
func (c *Cluster) SetClock(ahead time.Duration) error {
	if !c.opts.Clock {
		return errors.New("setting the server's clock: it has none of its own (Options.Clock)")
	}
	f, err := os.OpenFile(c.clockPath(), os.O_CREATE|os.O_WRONLY, 0o644) // never another file: servers have mapped it
	if err != nil {
		return fmt.Errorf("setting the server's clock: %w", err)
	}
	_, err = f.Write(binary.NativeEndian.AppendUint64(nil, uint64(ahead/time.Second)))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("setting the server's clock: %w", err)
	}
	return nil
}
