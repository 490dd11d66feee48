package view

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/pgrunbook/pgrunbook/engine"
)

// No time left is shown before this share of the bytes and this time: it would be a guess.
const (
	etaShare = 0.01
	etaAfter = 30 * time.Second
)

// amount is how far something is.
type amount struct {
	rows, rowsAll   int64
	bytes, bytesAll int64
	rate            float64 // bytes per second; rows where no bytes are known
	eta             time.Duration

	from      int64 // bytes (or rows) and time that the rate is measured from
	fromAt    time.Time
	stepGiven bool // the event carried a rate
}

// set takes an event's figures; where it has no rate, one is measured, smoothed over some seconds.
func (a *amount) set(e engine.Event, now time.Time) {
	a.rows, a.rowsAll, a.bytesAll = e.Rows, e.RowsAll, e.BytesAll
	a.bytes, a.eta = e.Bytes, e.ETA
	at, _ := a.measure()
	if a.fromAt.IsZero() {
		a.from, a.fromAt = at, now
	}
	if a.stepGiven = e.Rate > 0; a.stepGiven {
		a.rate = e.Rate
		return
	}
	if took := now.Sub(a.fromAt); took >= 2*time.Second {
		rate := float64(at-a.from) / took.Seconds()
		if a.rate == 0 {
			a.rate = rate
		}
		a.rate, a.from, a.fromAt = 0.6*a.rate+0.4*rate, at, now
	}
}

// measure gives how much is done of how much, in bytes where these are known, else in rows.
func (a *amount) measure() (done, all int64) {
	if a.bytesAll > 0 || a.bytes > 0 {
		return a.bytes, a.bytesAll
	}
	return a.rows, a.rowsAll
}

// share is how much is done, from 0 to 1; false when that is not known.
func (a *amount) share() (float64, bool) {
	if a.bytesAll == 0 && a.rowsAll > 0 {
		return min(1, float64(a.rows)/float64(a.rowsAll)), true
	}
	if a.bytesAll > 0 {
		return min(1, float64(a.bytes)/float64(a.bytesAll)), true
	}
	return 0, false
}

// left is the time to go, where it can be told.
func (a *amount) left(elapsed time.Duration) (time.Duration, bool) {
	share, ok := a.share()
	if !ok || share < etaShare || share >= 1 || elapsed < etaAfter {
		return 0, false
	}
	if a.eta > 0 {
		return a.eta, true
	}
	done, all := a.measure()
	if a.rate < 1 || all == 0 {
		return 0, false
	}
	return time.Duration(float64(all-done) / a.rate * float64(time.Second)), true
}

// short gives "42%", or the rows where no share is known.
func (a *amount) short() string {
	if share, ok := a.share(); ok {
		return fmt.Sprintf("%d%%", int(share*100))
	}
	return countText(a.rows) + " rows"
}

// text gives "42% · 1.2 GiB of 3.0 GiB · 12.0 k rows · 110 MiB/s · 3m left".
func (a *amount) text(elapsed time.Duration) string { return a.parts(elapsed, 0) }

// fit is text for so many columns: what matters least goes first.
func (a *amount) fit(elapsed time.Duration, room int) string {
	text := a.parts(elapsed, 0)
	for less := 1; less <= leastParts && ansi.StringWidth(text) > room; less++ {
		text = a.parts(elapsed, less)
	}
	return text
}

// leastParts is the level of parts at which only share and time left remain.
const leastParts = 4

// parts leaves out more the larger less is: the rows, the bytes of all, the rate, the bytes.
func (a *amount) parts(elapsed time.Duration, less int) string {
	var parts []string
	share, known := a.share()
	if known {
		parts = append(parts, fmt.Sprintf("%d%%", int(share*100)))
	}
	switch {
	case less >= leastParts && known:
	case a.bytesAll > 0 && less < 2:
		parts = append(parts, bytesText(a.bytes)+" of "+bytesText(a.bytesAll))
	case a.bytes > 0:
		parts = append(parts, bytesText(a.bytes))
	}
	byRows := a.bytes == 0 && a.bytesAll == 0
	switch {
	case byRows && a.rowsAll > 0 && less < leastParts:
		parts = append(parts, countText(a.rows)+" of "+countText(a.rowsAll))
	case a.rows == 1 && less < 1:
		parts = append(parts, "1 row")
	case a.rows > 0 && less < 1:
		parts = append(parts, countText(a.rows)+" rows")
	}
	switch {
	case a.rate < 1 || less >= 3:
	case byRows:
		parts = append(parts, countText(int64(a.rate))+"/s")
	default:
		parts = append(parts, bytesText(int64(a.rate))+"/s")
	}
	if left, ok := a.left(elapsed); ok {
		parts = append(parts, durationText(left)+" left")
	}
	return strings.Join(parts, " · ")
}

// stepState is the step that runs.
type stepState struct {
	id      engine.StepID
	title   string
	started time.Time
	all     amount
}

// tableState is one table of the step that runs.
type tableState struct {
	name    string
	stage   string // of a load; empty where tables have none
	amount  amount
	started time.Time
	touched time.Time
}

// The stages of a load at its begin and at its end; between them, the stage says more than a share.
const (
	stageCopying = "copying"
	stageReady   = "ready"
)

// later reports whether the rows are there and something else is done with the table.
func (t *tableState) later() bool {
	return t.stage != "" && t.stage != stageCopying && t.stage != stageReady
}

// short gives the share, or what is done after the rows.
func (t *tableState) short() string {
	if t.later() {
		return t.stage
	}
	return t.amount.short()
}

// fit gives the figures for so many columns.
func (t *tableState) fit(now time.Time, room int) string {
	if t.later() {
		return t.stage + " · " + bytesText(t.amount.bytes)
	}
	return t.amount.fit(now.Sub(t.started), room)
}

// begun is 1 for a table that has begun, else 0.
func (t *tableState) begun() int {
	if t.amount.bytes > 0 || t.amount.rows > 0 {
		return 1
	}
	return 0
}

// model is what a live view knows. It holds the tables of the running step only.
type model struct {
	run     string
	step    *stepState
	tables  map[string]*tableState
	done    map[string]bool // tables
	waiting string          // for what
	inWay   []string        // who is in the way
	lag     string
}

func (m *model) event(e engine.Event, now time.Time) {
	if e.Run != "" {
		m.run = e.Run
	}
	if e.Kind != engine.EventWaiting && e.Kind != engine.EventLag {
		m.waiting, m.inWay = "", nil
	}
	switch e.Kind {
	case engine.EventStepStarted:
		*m = model{run: m.run, step: &stepState{id: e.Step, title: e.Message, started: now}, tables: map[string]*tableState{}, done: map[string]bool{}}
	case engine.EventStepDone, engine.EventStepFailed, engine.EventRunEnded:
		*m = model{run: m.run}
	case engine.EventProgress:
		if m.step != nil {
			m.step.all.set(e, now)
		}
	case engine.EventTable:
		m.table(e, now)
	case engine.EventWaiting:
		m.waiting, m.inWay = waitingFor(e), e.Blockers
	case engine.EventLag:
		m.lag = e.Message
	default:
	}
}

func (m *model) table(e engine.Event, now time.Time) {
	if m.tables == nil || e.Object == "" {
		return
	}
	t := m.tables[e.Object]
	if t == nil {
		t = &tableState{name: e.Object, started: now}
		m.tables[e.Object] = t
	}
	t.amount.set(e, now)
	t.touched, t.stage = now, e.Reason
	if share, ok := t.amount.share(); ok && share >= 1 && (t.stage == "" || t.stage == stageReady) {
		delete(m.tables, e.Object)
		m.done[e.Object] = true
	} else {
		delete(m.done, e.Object) // it is loaded again
	}
}

// active lists the tables that are under way, those that have begun and then the largest before
// others, in the order of their names, so that lines do not jump.
func (m *model) active(most int) []*tableState {
	all := make([]*tableState, 0, len(m.tables))
	for _, t := range m.tables {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *tableState) int {
		return cmp.Or(-cmp.Compare(a.begun(), b.begun()), cmp.Compare(b.amount.bytesAll, a.amount.bytesAll), cmp.Compare(a.name, b.name))
	})
	all = all[:min(most, len(all))]
	slices.SortFunc(all, func(a, b *tableState) int { return cmp.Compare(a.name, b.name) })
	return all
}

// waitingFor says for what an event waits, without those in the way and without saying twice that
// it waits: they have lines of their own, and on a narrow terminal a long one is cut.
func waitingFor(e engine.Event) string {
	message, _, _ := strings.Cut(e.Message, ", in the way: ")
	message = strings.TrimPrefix(strings.TrimPrefix(message, "waiting "), "for ")
	if message == "" || e.Reason != "" && !strings.Contains(message, e.Reason) && len(e.Blockers) > 0 {
		message = strings.TrimPrefix(message+": "+e.Reason, ": ")
	}
	return message
}
