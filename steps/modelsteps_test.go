package steps

import (
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
)

func asError(err error, e **engine.Error) bool { return errors.As(err, e) }

// An act is one thing that may happen.
type act struct {
	what string
	by   doer
	to   world
}

// doer says who must do it.
type doer uint8

const (
	byRunner   doer = iota // a living runner goes on
	byItself               // the servers and the guardian
	byWorld                // the application, or a DBA: it may happen or not
	byFault                // a fault
	byPerson               // somebody types the same command, because a text says so
	byContinue             // a stopped process wakes up
)

// What of the application takes part in a walk.
type cast struct{ writers, rogues, readers bool }

// acts lists what may happen next.
func (w world) acts(b rulebook, c cast) []act {
	list := w.application(c)
	add := func(what string, k doer, to world) { list = append(list, act{what, k, to}) }
	for i := uint8(first); i <= second; i++ {
		p := w.run[i]
		if p.at == absent {
			continue
		}
		numbered := func(what string, by doer, to world) { add(fmt.Sprintf("%d %s", i, what), by, to) }
		if !p.stopped {
			w.runner(b, i, numbered)
		}
		w.faults(i, numbered)
	}
	w.servers(b, add)
	w.guardian(b, add)
	w.commands(b, add)
	return list
}

func (w world) application(c cast) (list []act) {
	add := func(what string, to world) { list = append(list, act{what, byWorld, to}) }
	end := func(what string, to world) { list = append(list, act{what, byItself, to}) } // transactions do not last for ever
	n := w
	if c.writers {
		if w.fromWrites() && !w.writer {
			n.writer = true
			add("a writer passes from's gate", n)
		}
		if w.writer {
			n = w
			n.writer, n.ahead, n.since = false, true, true
			end("the writer commits and is acknowledged", n)
			n = w
			n.writer = false
			end("the writer rolls back", n)
		}
	}
	if c.rogues {
		if w.rogue == 0 && w.lost == 0 && !w.fromClosed {
			n = w
			n.rogue = 1
			if w.fromHold != nobody {
				n.rogue = 2
			}
			add("a writer disables the triggers and writes", n)
		}
		if w.rogue != 0 {
			n = w
			n.lost, n.rogue = w.rogue, 0
			end("that writer commits", n)
		}
	}
	if c.readers {
		n = w
		n.reader, n.old = !w.reader, false
		add(map[bool]string{true: "a session on to takes a snapshot", false: "the session on to ends"}[n.reader], n)
	}
	return list
}

// runner is what a living runner does next.
func (w world) runner(b rulebook, i uint8, add func(string, doer, world)) {
	to := func(at phase) world {
		n := w
		n.run[i].at = at
		return n
	}
	fail := func(what string) {
		n := to(undoing)
		n.calm = false
		add(what, byFault, n)
	}
	p := w.run[i]
	if fenced := p.fenced && b[epochFences]; fenced && (p.at == preparing || p.at == snapped || p.at == allSet || p.at == flipped || p.at == owned || p.at == settling) {
		at := absent
		if p.at == snapped || p.at == allSet {
			at = undoing
		}
		add("finds that it was replaced", byRunner, to(at))
		return
	}
	// A heartbeat tells of a lost hold, sooner or later.
	if p.at >= heldTo && p.at <= decided && (w.fromHold != i && p.at >= held || b[holdOnTo] && w.toHold != i) {
		add("the heartbeat finds the hold gone", byRunner, to(undoing))
	}
	switch p.at {
	case settling, unsure:
		w.look(b, i, add)
	case preparing:
		n := to(heldTo)
		if b[holdOnTo] {
			if w.toHold != nobody {
				return
			}
			n.toHold = i
		}
		add("holds to", byRunner, n)
	case heldTo:
		w.takeHold(b, to(held), i, add)
		fail("writers do not make room")
	case held:
		n := to(proved)
		if !b[proveNoOlder] || w.rogue == 0 {
			add("proves that no older writer is left", byRunner, n)
		}
		fail("an older writer is in the way")
	case proved:
		n := to(snapped)
		if b[snapshotAfterHold] {
			n.since = false
		}
		add("takes the final pass's snapshot", byRunner, n)
		fail("the final pass fails")
	case snapped:
		n := to(passed)
		n.ahead = w.since
		n.old = w.old || w.reader
		add("applies the final pass", byRunner, n)
		fail("the final pass fails")
	case passed:
		if b[emptyDeltas] && w.ahead || b[fingerprintBefore] && w.lost != 0 {
			add("finds something left", byRunner, to(undoing))
			return
		}
		add("finds the deltas empty and the catalog unchanged", byRunner, to(checked))
		fail("the check fails")
	case checked:
		if !b[repointUnderHold] {
			add("leaves the switch steps for later", byRunner, to(repointed))
			return
		}
		n := to(repointed)
		n.begun, n.pointed = true, true
		add("sends the clients over", byRunner, n)
		n.run[i].at, n.calm = undoing, false
		add("sends the clients over, and the switch step fails", byFault, n)
	case repointed:
		if b[fingerprintBefore] && w.lost != 0 {
			add("finds the catalog changed", byRunner, to(undoing))
			return
		}
		n := to(allSet)
		if b[endOldSnapshots] {
			n.reader, n.old = false, false
		}
		add("ends old snapshots", byRunner, n)
	case allSet:
		n := to(decided)
		n.open = b[decideFirst]
		add("records the decision", byRunner, n)
		n.run[i].at, n.calm = undoing, false
		add("records the decision and hears nothing", byFault, n)
		fail("the decision cannot be recorded")
	case decided:
		w.commitFrom(b, i, add)
	case between:
		w.commitTo(b, i, add)
	case flipped:
		n := to(owned)
		n.open, n.ownerTo = false, true
		add("records that to takes writes", byRunner, n)
	case owned:
		n := to(finished)
		n.rogue = 0 // its session is ended
		n.told = b[fingerprintAfter] && w.lost != 0
		add("ends from's sessions and looks at its catalog", byRunner, n)
	case undoing:
		n := to(sendingBack)
		if w.fromHold == i && w.sent != i && b[openBeforeUndo] {
			n.fromHold = nobody
		}
		if w.toHold == i && !b[sentBackFirst] {
			n.toHold = nobody
		}
		add("lets go of from", byRunner, n)
	case sendingBack:
		n := to(preparing)
		if b[undoSwitch] && !(p.fenced && b[replacedKeepsOff]) {
			n.pointed, n.begun = false, false
		}
		if w.fromHold == i && w.sent != i {
			n.fromHold = nobody
		}
		if w.toHold == i {
			n.toHold = nobody
		}
		if w.lost != 0 {
			n.lost = 0 // what the fingerprint found is carried, or loaded again
		}
		add("undoes the switch steps, lets go of to, and tries again", byRunner, n)
		n.run[i].at = gaveUp
		add("undoes the switch steps, lets go of to, and gives up", byRunner, n)
	case opening:
		n := to(owned)
		n.open, n.ownerTo = false, true
		if p.fenced && b[epochFences] {
			n.run[i].at, n.open, n.ownerTo = absent, w.open, w.ownerTo
		}
		w.openTo(b, n, i, add)
	default: // not there, or at its end
	}
}

// takeHold takes from's key. In a naive freeze the flag is seen at once, and stays.
func (w world) takeHold(b rulebook, n world, i uint8, add func(string, doer, world)) {
	if w.fromHold != nobody || w.fromClosed || b[drainWriters] && w.writer {
		return
	}
	n.fromHold = i
	if !b[flagInHold] {
		n.fromClosed = true
	}
	if !b[snapshotAfterHold] {
		n.since = false // the snapshot was taken when the transaction began, before the wait
		if w.writer {
			n.since = true
		}
	}
	if w.rogue != 0 {
		n.rogue = 1
	}
	add("holds from", byRunner, n)
}

// commitFrom is the flip of from.
func (w world) commitFrom(b rulebook, i uint8, add func(string, doer, world)) {
	n := w
	if !b[closeFirst] {
		n.toClosed, n.toHold = false, nobody
		n.run[i].at = between
		add("opens to first", byRunner, n)
		return
	}
	if b[commitIsFlip] && w.fromHold != i {
		n.run[i].at = undoing
		add("COMMIT of from's hold is refused: it was lost", byRunner, n)
		return
	}
	if b[commitIsFlip] {
		n.sent = i
		n.run[i].at, n.calm = unsure, false
		add("sends COMMIT, which waits at the server, and hears nothing", byFault, n)
		n = w
		n.run[i].at, n.calm = unsure, false
		add("sends COMMIT into a silent network", byFault, n)
		n = w
	}
	n.fromClosed, n.fromHold = true, nobody
	n.run[i].at = between
	add("COMMIT of from's hold: from is closed", byRunner, n)
}

// commitTo opens to.
func (w world) commitTo(b rulebook, i uint8, add func(string, doer, world)) {
	n := w
	if !b[repointUnderHold] && !w.pointed {
		n.pointed = true
		n.run[i].at = between
		add("sends the clients over, while neither side takes writes", byRunner, n)
		return
	}
	if !b[closeFirst] {
		n.fromClosed, n.fromHold = true, nobody
		n.run[i].at = flipped
		add("closes from", byRunner, n)
		return
	}
	if b[holdOnTo] && w.toHold != i {
		n.run[i].at = unsure
		add("COMMIT of to's hold is refused: it was lost", byRunner, n)
		return
	}
	n.run[i].at, n.calm = unsure, false
	add("to falls silent before its COMMIT", byFault, n)
	n = w
	n.toClosed, n.toHold = false, nobody
	n.run[i].at = flipped
	add("COMMIT of to's hold: to is open", byRunner, n)
}

// look is how a runner finds out who may write: the gates with their keys in hand, then the journal.
func (w world) look(b rulebook, i uint8, add func(string, doer, world)) {
	n := w
	if w.fromHold == i && w.sent != i { // its own sessions: a failed COMMIT closed them
		n.fromHold = nobody
		add("lets its sessions go", byRunner, n)
		return
	}
	if w.toHold == i {
		n.toHold = nobody
		add("lets its sessions go", byRunner, n)
		return
	}
	if b[keyBeforeFlag] && (w.fromHold != nobody || w.toHold != nobody) {
		return // waits
	}
	v := w.judge()
	if !b[gatesNotJournal] && w.open {
		v = halfFlipped
	}
	switch v {
	case fromWrites, neverFlipped:
		n.open = false
		if b[undoSwitch] {
			n.pointed, n.begun = false, false
		}
		n.run[i].at = preparing
		add("looks: from takes writes", byRunner, n)
	case halfFlipped:
		n.run[i].at, n.run[i].linked = opening, true
		add("looks: from is closed by a decided flip", byRunner, n)
	default:
		n.run[i].at = confused
		add("looks: gates and journal contradict each other", byRunner, n)
	}
}

// openTo is the second half of a resolver.
func (w world) openTo(b rulebook, n world, i uint8, add func(string, doer, world)) {
	who, linked := "the guardian opens to", w.guardLinked
	k := byItself
	if i != nobody {
		who, linked, k = "opens to", w.run[i].linked, byRunner
	}
	if b[sessionsBeforeRead] && !linked {
		if i == nobody {
			n = w
			n.guard = settling
			add("the guardian finds its sessions ended", k, n)
		} else {
			n = w
			n.run[i].at = unsure
			add("finds its sessions ended", k, n)
		}
		return
	}
	if b[keyBeforeFlag] && w.toHold != nobody {
		return
	}
	n.toClosed = false
	add(who, k, n)
}
