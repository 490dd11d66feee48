package pass

import (
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

const (
	roundsSeen   = 4    // by which it is judged whether a backlog falls
	roundsLosing = 2    // of them, in which it did not: a burst of changes makes one
	leastGain    = 0.05 // of what is applied: less does not end before something else changes
	clearGain    = 0.2  // takes back that there is too little
)

// faster is what helps against an application that writes faster than rows are applied.
const faster = "slow the writers, give more workers (pgrunbook set workers=N), or wait for a quieter time"

// alone is what helps where one pass takes all.
const alone = "slow the writers, or wait for a quieter time"

// round is what came in and what was taken out between two looks at a backlog.
type round struct {
	took, busy time.Duration
	came, done int64
}

// rates compares how fast the application writes with how fast rows are applied.
type rates struct {
	round   // the one that is going on, without what came in
	at      time.Time
	pending int64
	all     int64   // that were applied, in all rounds
	seen    []round // the latest
	lag     time.Duration

	lowest int64 // backlog
	since  time.Time
	losing int  // rounds, in all
	told   bool // that it will not converge, and not yet taken back
	rests  bool // a loop rests between passes: what comes in then is no sign that they are too slow
	alone  bool // one pass takes all
}

// observe closes a round: what came in is what is there now, less what was there, plus what was
// taken out.
func (r *rates) observe(now time.Time, pending int64) {
	if r.at.IsZero() {
		r.seen = nil
	} else {
		r.took, r.came = now.Sub(r.at), max(pending-r.pending+r.done, 0)
		r.seen = append(r.seen, r.round)
		r.seen = r.seen[max(len(r.seen)-roundsSeen, 0):]
	}
	if r.since.IsZero() || pending < r.lowest {
		r.lowest, r.since = pending, now
	}
	r.at, r.pending, r.round = now, pending, round{}
}

func (r *rates) applied(rows int64, took time.Duration) {
	r.all += rows
	r.done += rows
	r.busy += took
}

// paused leaves out a time in which nothing was to be applied.
func (r *rates) paused(waited time.Duration) {
	if waited >= controlPoll {
		r.at = time.Time{}
		r.since = r.since.Add(waited)
	}
}

// sum adds up the latest rounds. losing are those in which the backlog hardly fell.
func (r *rates) sum() (all round, losing int) {
	for _, one := range r.seen {
		all.took += one.took
		all.busy += one.busy
		all.came += one.came
		all.done += one.done
		if r.gain(one) <= leastGain {
			losing++
		}
	}
	return all, losing
}

// gain is the share of what was applied by which the backlog fell, or would have fallen without rests.
func (r *rates) gain(one round) float64 {
	if one.done == 0 {
		return 0
	}
	came := float64(one.came)
	if r.rests && one.took > 0 {
		came *= min(1, one.busy.Seconds()/one.took.Seconds())
	}
	return 1 - came/float64(one.done)
}

func (r *rates) hint() string {
	if r.alone {
		return alone
	}
	return faster
}

func (r *rates) converges() bool {
	all, losing := r.sum()
	return len(r.seen) < roundsSeen || losing < roundsLosing || r.gain(all) > leastGain
}

func (r *rates) hopeless(giveUp time.Duration) bool {
	return !r.converges() && r.at.Sub(r.since) > giveUp
}

func (r *rates) text() string {
	all, _ := r.sum()
	perSecond := func(rows int64, d time.Duration) float64 { return float64(rows) / max(d, time.Millisecond).Seconds() }
	text := fmt.Sprintf("will not converge: the application changes %.0f rows/s, %.0f rows/s are applied", perSecond(all.came, all.took), perSecond(all.done, all.busy))
	if r.lag > 0 {
		text += fmt.Sprintf(", and a pass takes %s", r.lag.Round(time.Millisecond))
	}
	return text
}

func (r *rates) err() error {
	return &engine.Error{Op: "catching up", Err: errors.New(r.text()), Hint: "To catch up, " + r.hint() + "; then run the same command again."}
}

// judge says that a backlog does not fall, ever more seldom, and takes it back when it does.
func (p *Passer) judge(r *rates, b Backlog) {
	all, _ := r.sum()
	switch {
	case !r.converges():
		if r.losing++; r.losing&(r.losing-1) != 0 {
			return
		}
		r.told = true
		p.cfg.Emit(engine.Event{
			Kind: engine.EventWaiting, Level: "warn", At: time.Now(), Pending: b.Rows, Message: r.text(),
			Reason: "the application writes faster than rows are applied", Hint: r.hint(),
		})
	case r.told && r.gain(all) > clearGain:
		r.told = false
		p.falls(b.Rows)
	}
}
