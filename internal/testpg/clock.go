package testpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// clockNeed is libfaketime, which gives a server with Options.Clock its time of day.
var clockNeed = need{"libfaketime", func() bool { _, err := clockLibrary(); return err == nil }, []string{"libfaketime"}}

// clockLibrary finds it where Debian puts it.
func clockLibrary() (string, error) {
	found, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(found) == 0 {
		return "", errors.Join(errors.New("finding libfaketime: apt-get install libfaketime"), err)
	}
	return found[0], nil
}

func (c *Cluster) clockPath() string { return filepath.Join(c.root.path, "clock") }

// clockEnv lets a server read the time of day through libfaketime, which looks at our file each time. What PostgreSQL
// measures by a monotonic clock, and the times of files, stay what they are.
func (c *Cluster) clockEnv() ([]string, error) {
	if !c.opts.Clock {
		return nil, nil
	}
	library, err := clockLibrary()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(c.clockPath()); errors.Is(err, os.ErrNotExist) {
		if err := c.SetClock(0); err != nil {
			return nil, err
		}
	}
	return []string{
		"LD_PRELOAD=" + library, "FAKETIME_TIMESTAMP_FILE=" + c.clockPath(), "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1",
	}, nil
}

// SetClock lets the server's clock go ahead of the machine's, or behind it where ahead is negative, from now on. That
// of one that runs jumps.
func (c *Cluster) SetClock(ahead time.Duration) error {
	if !c.opts.Clock {
		return errors.New("setting the server's clock: it has none of its own (Options.Clock)")
	}
	next := c.clockPath() + ".next" // a half written file would be a third time
	if err := os.WriteFile(next, fmt.Appendf(nil, "%+d\n", int(ahead.Seconds())), 0o644); err != nil {
		return fmt.Errorf("setting the server's clock: %w", err)
	}
	if err := os.Rename(next, c.clockPath()); err != nil {
		return fmt.Errorf("setting the server's clock: %w", err)
	}
	return nil
}
