package steps

// faults are what may befall a runner at any time.
func (w world) faults(i uint8, add func(string, doer, world)) {
	n := w
	n.calm = false
	p := w.run[i]
	if p.at == gaveUp || p.at == confused || p.at == finished {
		return
	}
	n.run[i] = proc{}
	add("is killed", byFault, n)
	n = w
	n.calm = false
	n.run[i].stopped = !p.stopped
	if p.stopped {
		add("wakes up", byContinue, n)
	} else if i == first && !p.fenced { // one that stands still is enough
		add("is stopped or cut off", byFault, n)
	}
	if w.fromHold == i && w.sent != i {
		n = w
		n.calm, n.fromHold = false, nobody
		add("loses from's hold", byFault, n)
	}
	if w.toHold == i {
		n = w
		n.calm, n.toHold = false, nobody
		add("loses to's hold", byFault, n)
	}
}

// servers end what belongs to nobody any more.
func (w world) servers(b rulebook, add func(string, doer, world)) {
	gone := func(i uint8) bool {
		p := w.run[i]
		return p.at == absent || p.stopped && b[deadMan] || p.at == gaveUp || p.at == confused
	}
	if w.sent != nobody {
		n := w
		n.fromClosed, n.fromHold, n.sent = true, nobody, nobody
		add("the server ends the COMMIT that nobody heard of", byItself, n)
	}
	if w.fromHold != nobody && w.sent == nobody && gone(w.fromHold) {
		n := w
		n.fromHold = nobody
		add("from's server ends the hold", byItself, n)
	}
	if w.toHold != nobody && gone(w.toHold) {
		n := w
		n.toHold = nobody
		add("to's server ends the hold", byItself, n)
	}
}

// guardian acts when its runner is dead or silent; and one that is only slow may seem so at any time.
func (w world) guardian(b rulebook, add func(string, doer, world)) {
	n := w
	if w.guard == absent {
		return
	}
	n.guard = absent
	n.calm = false
	add("the guardian is killed", byFault, n)
	n = w
	switch {
	case w.guard == opening:
		n.guard = settling
		n.open, n.ownerTo = false, true
		if !b[sessionsBeforeRead] && w.ownerTo != n.ownerTo && !w.open { // the journal has gone on: its record is fenced
			n.ownerTo = w.ownerTo
		}
		w.openTo(b, n, nobody, add)
		if w.toHold != nobody && w.guardLinked {
			n = w
			n.toHold = nobody
			add("the guardian ends the hold on to", byItself, n)
		}
		return
	case w.guard == noting && !w.guardLinked:
		n.guard = settling
		add("the guardian finds its sessions ended", byItself, n)
		return
	case w.guard == noting:
		n.guard, n.open = settling, false
		add("the guardian records that from takes writes", byItself, n)
		return
	case w.guard == undoing && !w.guardLinked && b[replacedKeepsOff]:
		n.guard = settling
		add("the guardian finds that it was replaced", byItself, n)
		return
	case b[keyBeforeFlag] && (w.fromHold != nobody || w.toHold != nobody && !w.fromClosed):
		return // waits
	}
	switch v := w.judge(); {
	case w.guard == undoing:
		if n.guard = settling; v == fromWrites || v == neverFlipped {
			n.open, n.begun, n.pointed = false, false, false
		}
		add("the guardian looks, and undoes the switch steps", byItself, n)
	case v == halfFlipped && w.toClosed || !b[gatesNotJournal] && w.open:
		n.guard, n.guardLinked = opening, true
		add("the guardian looks: from is closed by a decided flip", byItself, n)
	case v == neverFlipped && !b[keyWhileNoting]:
		n.guard, n.guardLinked = noting, true
		add("the guardian looks: from takes writes", byItself, n)
	case v == neverFlipped:
		n.open = false
		add("the guardian looks: from takes writes", byItself, n)
	case v == fromWrites && w.begun && b[undoSwitch] && b[guardianSendsBack] && w.run[w.watched].at != finished:
		n = w.takeOver()
		n.guard, n.guardLinked = undoing, true
		add("the guardian takes the run over", byItself, n)
	}
}

// commands are what a person types: the same command, where a text says so; and, once, a rollback.
func (w world) commands(b rulebook, add func(string, doer, world)) {
	free := uint8(nobody)
	for i := uint8(first); i <= second; i++ {
		if at := w.run[i].at; at == absent || at == gaveUp || at == confused {
			free = i
			break
		}
	}
	other := w.run[3-max(free, 1)]
	idle := other.at == absent || other.at == gaveUp || other.at == confused || other.at == finished || other.stopped
	if free == nobody || !idle {
		return
	}
	n := w.takeOver()
	n.run[free] = proc{at: settling}
	if b[guardianWatches] { // an old one that stands still in the midst of opening is the new one's to model
		n.guard, n.watched = max(w.guard, settling), free
	}
	if begin := w == start(); begin || sameCommand(w.advice()) {
		add("somebody types the same command", byPerson, n)
	}
	if w.settled() && w.ownerTo && !w.rolledBack {
		n = w.takeOver()
		n.fromClosed, n.toClosed, n.ownerTo, n.pointed = false, true, false, false
		n.rolledBack = true
		n.ahead, n.since, n.lost, n.rogue, n.old, n.reader, n.begun = false, false, 0, 0, false, false, false
		for i := uint8(first); i <= second; i++ {
			if n.run[i].at == finished {
				n.run[i] = proc{}
			}
		}
		add("somebody rolls back", byWorld, n)
	}
}

// takeOver ends the sessions of every earlier process of the run. A COMMIT that waits is not undone
// by that.
func (w world) takeOver() world {
	n := w
	if w.sent == nobody {
		n.fromHold = nobody
	}
	n.toHold, n.guardLinked = nobody, false
	for i := range n.run {
		n.run[i].linked = false
		n.run[i].fenced = w.run[i].at != absent && w.run[i].at != finished
	}
	return n
}
