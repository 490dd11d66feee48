package load

import "time"

const (
	firstWait   = 100 * time.Millisecond
	worstWait   = 5 * time.Second
	giveUpAfter = 5 * time.Minute // of failures without a chunk in between
	fewestTries = 5               // which a worker has in any case: one may take longer than that by itself
)

// setbacks are a worker's failures without a chunk in between.
type setbacks struct {
	tries int
	since time.Time // the first of them
	wait  time.Duration
}

// again counts a failure and says how long to wait before another try, if there is to be one.
func (s *setbacks) again(now time.Time) (wait time.Duration, yes bool) {
	if s.tries++; s.tries == 1 {
		s.since, s.wait = now, firstWait
	}
	if s.tries >= fewestTries && now.Sub(s.since) > giveUpAfter {
		return 0, false
	}
	wait = s.wait
	s.wait = min(wait*2, worstWait)
	return wait, true
}
