package load

import (
	"testing"
	"time"
)

// Patience is for what fails, not for what takes long: a chunk whose every try takes longer than that, and is cut, is tried
// again; a server that is away ends a load after minutes, however many tries these are; a chunk that came through makes all anew.
func TestPatienceOfAWorker(t *testing.T) {
	for name, c := range map[string]struct {
		try   time.Duration
		tries int
		most  time.Duration
	}{
		"chunks of an hour":        {time.Hour, fewestTries, fewestTries * 2 * time.Hour},
		"a server that is away":    {0, 60, giveUpAfter + 2*worstWait},
		"one that does not answer": {30 * time.Second, fewestTries, giveUpAfter + time.Minute},
	} {
		s, now := setbacks{}, time.Unix(0, 0)
		for range 2 {
			begun, tries := now, 0
			for {
				now = now.Add(c.try)
				tries++
				wait, yes := s.again(now)
				if !yes {
					break
				}
				now = now.Add(wait)
			}
			if tries < c.tries || now.Sub(begun) > c.most {
				t.Errorf("%s: given up after %d tries in %s", name, tries, now.Sub(begun))
			}
			s = setbacks{}
		}
	}
}

// F32: a server that looks for deadlocks early finds none of ours with the application.
func TestF32ChunksWaitLessThanDeadlockTimeout(t *testing.T) {
	p := newPair(t, oneTable)
	p.exec(p.source, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 100', current_database()); END $$`)
	w := &worker{l: New(p.cfg)}
	defer w.close()
	if err := w.connect(p.ctx); err != nil {
		t.Fatal(err)
	}
	var waits string
	if err := w.from.QueryRow(p.ctx, "SHOW lock_timeout").Scan(&waits); err != nil || waits != "60ms" {
		t.Errorf("a chunk waits %s for a lock on the source, %v", waits, err)
	}
}
