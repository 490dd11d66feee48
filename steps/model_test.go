package steps

import (
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// The model of the cutover: everything that may happen, in any order, on a state of a few bytes. It
// is the freeze of docs/protocol.md as steps and steps/internal/freeze make it, for one direction:
// from takes writes at first. What a runner concludes from the gates is the product's own judge, and
// a command is typed only where the product's own texts name it.

// A rule is one of the protocol's; a walk can be made without it.
type rule int

const (
	flagInHold         rule = iota // the flag is set in the hold's transaction; without: by setval, seen at once, never undone
	commitIsFlip                   // the hold's COMMIT closes from; without: another connection does
	closeFirst                     // from's COMMIT comes before to's
	repointUnderHold               // clients are sent over while writes are held; without: after from was closed
	drainWriters                   // the hold waits for transactions that passed the gate
	holdOnTo                       // to is held too, so that clients wait there
	deadMan                        // the server ends the hold of a process that stands still
	proveNoOlder                   // pg_locks shows no writer that did not pass the gate
	snapshotAfterHold              // the final pass takes its snapshot under the hold
	emptyDeltas                    // the deltas are empty after the final pass
	fingerprintBefore              // the catalog is compared before the flip
	fingerprintAfter               // and after it, when the old side's sessions are gone
	endOldSnapshots                // to's sessions that saw the data before the final pass are ended
	openBeforeUndo                 // a freeze that is undone lets go of from first: no budget bounds what undoes switch steps
	sentBackFirst                  // and of to last, when the clients have been sent back
	undoSwitch                     // switch steps are undone when the freeze is, also those of a dead process
	decideFirst                    // the decision is recorded before the first COMMIT
	keyBeforeFlag                  // whoever reads a flag has its key in hand
	gatesNotJournal                // the gates say whether to is opened, not the record of the decision
	sessionsBeforeRead             // a resolver's sessions are there before it reads: a later runner ends them
	epochFences                    // the journal takes nothing from a runner that was replaced
	replacedKeepsOff               // and that one undoes no switch step
	guardianWatches                // a guardian stands by
	guardianSendsBack              // and undoes the switch steps of a runner that is dead or silent, which it replaces
	keyWhileNoting                 // it has from's key in hand until it has recorded that from takes writes
	rules
)

type rulebook [rules]bool

func all(out ...rule) (b rulebook) {
	for r := range b {
		b[r] = true
	}
	for _, r := range out {
		b[r] = false
	}
	return b
}

// phase is how far a runner is.
type phase uint8

const (
	absent    phase = iota // dead, or never begun
	settling               // looks at both gates and the journal
	preparing              // nothing held
	heldTo
	held // both
	proved
	snapped
	passed
	checked
	repointed
	allSet
	decided
	between     // saw from's COMMIT succeed
	flipped     // saw to's COMMIT succeed
	owned       // recorded it
	finished    // looked once more
	undoing     // before the first COMMIT
	sendingBack // let go of from, and undoes the switch steps
	unsure      // sent a COMMIT and heard nothing: looks at both gates
	opening     // found from closed by a decided flip
	noting      // found from open, and is about to record that
	gaveUp      // ended with "no cutover this time"
	confused    // ended because gates and journal contradict each other
)

type proc struct {
	at      phase
	stopped bool // SIGSTOP, or cut off from everybody
	linked  bool // its resolver's sessions are there
	fenced  bool // a later runner took over: the journal takes nothing from it any more
}

// nobody, first and second own holds and COMMITs.
const (
	nobody = iota
	first
	second
)

// world is one state.
type world struct {
	fromClosed, toClosed bool  // the flags that everybody sees
	fromHold, toHold     uint8 // whose transaction has the key, at the server
	sent                 uint8 // whose COMMIT of from's hold is at the server, unanswered: it keeps the key
	run                  [3]proc
	guard                phase // absent, settling (it watches), opening, noting, undoing
	guardLinked          bool
	watched              uint8 // the runner that the guardian hears

	writer     bool  // passed from's gate and is in flight
	rogue      uint8 // 1: in flight past the gate since before the hold, 2: begun under it
	lost       uint8 // committed by such a one, without a trace in the deltas: 1 or 2
	ahead      bool  // from has commits that to has not
	since      bool  // of them, some after the final pass's snapshot
	reader     bool  // a session on to has a snapshot
	old        bool  // of before the final pass
	pointed    bool  // clients were sent to to
	begun      bool  // the journal says that a switch step was begun
	open       bool  // the journal: a flip is decided and not settled
	ownerTo    bool  // the journal: to takes writes
	told       bool  // the last look at from's catalog named what changed
	rolledBack bool
	calm       bool // no fault yet
}

func start() world { return world{toClosed: true, calm: true} }

func (w world) fromWrites() bool { return !w.fromClosed && w.fromHold == nobody }
func (w world) toWrites() bool   { return !w.toClosed && w.toHold == nobody }

// settled is where every way must lead: one side takes writes, the clients are sent there, and the
// journal knows.
func (w world) settled() bool {
	return w.fromWrites() != w.toWrites() && w.fromClosed != w.toClosed && w.pointed == w.toWrites() && !w.open && w.ownerTo == w.toWrites()
}

// broken names the promise that a state breaks.
func (w world) broken() string {
	switch {
	case w.fromWrites() && w.toWrites():
		return "two writable sides"
	case !w.fromClosed && !w.toClosed:
		return "two open gates"
	case !w.toClosed && w.ahead:
		return "an acknowledged write is lost: to is open without it"
	case !w.toClosed && w.lost == 1:
		return "a write that fired no trigger is lost"
	case w.lost == 2 && w.finishedFlip() && !w.told:
		return "a write past the closed gate is lost and nobody says so"
	case !w.toClosed && w.old:
		return "a session on to commits what it computed from rows of before the flip"
	case w.calm && w.pointed && w.toClosed && w.toHold == nobody && !w.fromClosed:
		return "a client is refused at to while all goes well"
	}
	return ""
}

func (w world) finishedFlip() bool {
	return w.run[first].at == finished || w.run[second].at == finished
}

// owner and gates are the state as the product reads it.
func (w world) owner() journal.Ownership {
	o := journal.Ownership{Side: engine.Source}
	if w.ownerTo {
		o.Side = engine.Target
	}
	if w.open {
		o.Side, o.Flip = journal.Unclear, &journal.Flip{From: engine.Source, To: engine.Target}
	}
	return o
}

func (w world) judge() verdict {
	return judge(freeze.State{FromClosed: w.fromClosed, ToClosed: w.toClosed}, w.owner(), engine.Target)
}

// advice is what the product tells a person to type: the end of a runner that gave up or could not
// settle the flip, else what status says. own is whether a runner's locks show that it is there.
func (w world) advice() string {
	var texts []string
	for i := first; i <= second; i++ {
		switch w.run[i].at {
		case gaveUp:
			texts = append(texts, hintOf(noCutover(engine.Source, nil, "")))
		case confused:
			texts = append(texts, hintOf(ambiguous("")))
		default: // it is at work, was never there, or is done
		}
	}
	if len(texts) == 0 {
		st := Status{State: journal.Active, Writes: w.owner().Side, Step: "freeze"}
		if w.settled() && w.ownerTo {
			st.Step = ""
		}
		st.Holder = &journal.Holder{Alive: w.busy()}
		texts = append(texts, st.next())
	}
	return strings.Join(texts, " / ")
}

// busy is whether a runner's locks are held.
func (w world) busy() bool {
	for i := first; i <= second; i++ {
		if at := w.run[i].at; at != absent && at != gaveUp && at != confused && at != finished {
			return true
		}
	}
	return false
}

func hintOf(err error) string {
	var e *engine.Error
	if !asError(err, &e) {
		return ""
	}
	return e.Hint
}

// sameCommand is whether a text tells a person to type the command again.
func sameCommand(text string) bool {
	return strings.Contains(text, "the same command again") || strings.HasPrefix(text, "pgrunbook apply")
}

func (w world) String() string {
	side := func(closed bool, hold uint8) string {
		s := map[bool]string{false: "open", true: "closed"}[closed]
		if hold != nobody {
			s += fmt.Sprintf(", held by runner %d", hold)
		}
		return s
	}
	return fmt.Sprintf("from %s; to %s", side(w.fromClosed, w.fromHold), side(w.toClosed, w.toHold))
}
