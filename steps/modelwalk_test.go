package steps

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// walked is every state that can be reached, with how.
type walked struct {
	states []world
	from   []int32 // the state before
	how    []string
	next   [][]edge
}

type edge struct {
	to int32
	by doer
}

// walk goes through all states, breadth first, and stops at the first broken promise.
func walk(b rulebook, c cast) (*walked, string) {
	g := &walked{states: []world{start()}, from: []int32{-1}, how: []string{""}, next: make([][]edge, 1)}
	index := map[world]int32{start(): 0}
	for i := 0; i < len(g.states); i++ {
		if why := g.states[i].broken(); why != "" {
			return g, g.trace(int32(i), why)
		}
		for _, a := range g.states[i].acts(b, c) {
			j, known := index[a.to]
			if !known {
				j = int32(len(g.states))
				index[a.to] = j
				g.states, g.from, g.how, g.next = append(g.states, a.to), append(g.from, int32(i)), append(g.how, a.what), append(g.next, nil)
			}
			g.next[i] = append(g.next[i], edge{j, a.by})
			if why := a.broken(g.states[i]); why != "" {
				return g, g.trace(int32(i), why) + "\n    " + a.what
			}
		}
	}
	return g, g.stuck(b)
}

// trace is the shortest way to a state.
func (g *walked) trace(i int32, why string) string {
	var steps []string
	for at := i; at > 0; at = g.from[at] {
		steps = append(steps, fmt.Sprintf("%s (%s)", g.how[at], g.states[at]))
	}
	slices.Reverse(steps)
	return why + ":\n    " + strings.Join(steps, "\n    ")
}

// stuck looks for states from which a promise cannot be reached any more.
func (g *walked) stuck(b rulebook) string {
	// By people who do what a text says, everything ends well.
	if i := g.cannot(func(w world) bool { return w.settled() }, byRunner, byItself, byPerson, byContinue); i >= 0 {
		return g.trace(i, "no way leads on, whatever is typed (the text says: "+g.states[i].advice()+")")
	}
	// By themselves, with a living guardian, servers and processes let one side take writes.
	i := g.cannot(func(w world) bool { return w.fromWrites() || w.toWrites() || b[guardianWatches] && w.guard == absent }, byRunner, byItself)
	if i >= 0 {
		return g.trace(i, "neither side takes writes until somebody types something")
	}
	i = g.cannot(func(w world) bool {
		return w.fromWrites() && !w.pointed || w.toWrites() && w.pointed || b[guardianWatches] && w.guard == absent
	}, byRunner, byItself)
	if i >= 0 {
		return g.trace(i, "clients are left at a closed side until somebody types something")
	}
	return ""
}

// broken names the promise that an act breaks, whatever state it leads to.
func (a act) broken(w world) string {
	n := a.to
	if w.fromClosed && w.toClosed && n.fromClosed && n.toClosed && n.pointed && !w.pointed {
		return "a switch step runs while neither side takes writes"
	}
	for i := first; i <= second; i++ {
		if n.run[i].at == gaveUp && w.run[i].at != gaveUp && !n.run[i].fenced && n.fromWrites() && n.pointed {
			return "clients are left at a side that does not take writes"
		}
		if w.run[i].at != sendingBack && w.run[i].at != undoing || n.run[i].at == w.run[i].at || a.by != byRunner {
			continue
		}
		if w.fromHold == uint8(i) && w.pointed && !n.pointed {
			return "writers wait while switch steps are undone"
		}
		if w.toHold == uint8(i) && n.toHold == nobody && n.pointed && n.run[i].at == sendingBack {
			return "clients are refused at to before they are sent back"
		}
	}
	return ""
}

// cannot gives the first state from which none that is good can be reached by acts of the kinds; -1
// for none.
func (g *walked) cannot(good func(world) bool, kinds ...doer) int32 {
	before := make([][]int32, len(g.states))
	for i, out := range g.next {
		for _, e := range out {
			if slices.Contains(kinds, e.by) {
				before[e.to] = append(before[e.to], int32(i))
			}
		}
	}
	reach := make([]bool, len(g.states))
	var queue []int32
	for i, w := range g.states {
		if good(w) {
			reach[i] = true
			queue = append(queue, int32(i))
		}
	}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		for _, j := range before[i] {
			if !reach[j] {
				reach[j] = true
				queue = append(queue, j)
			}
		}
	}
	return int32(slices.Index(reach, false))
}

var (
	writers = cast{writers: true}
	rogues  = cast{rogues: true}
	readers = cast{readers: true}
)

// TestModel walks through every state of the cutover: no write is lost, at most one side takes
// writes, and from every state what the program prints leads on.
func TestModel(t *testing.T) {
	casts := []cast{writers, rogues, readers}
	for _, c := range casts {
		begin := time.Now()
		g, why := walk(all(), c)
		if why != "" {
			t.Fatalf("%+v: of %d states: %s", c, len(g.states), why)
		}
		n := 0
		for _, out := range g.next {
			n += len(out)
		}
		t.Logf("%+v: %d states, %d acts, in %s", c, len(g.states), n, time.Since(begin).Round(time.Millisecond))
		said := map[string]int{}
		for _, w := range g.states {
			if !w.settled() {
				said[w.advice()]++
			}
		}
		for text, n := range said {
			t.Logf("in %d states on the way it says: %s", n, text)
		}
		if len(g.states) < 1000 {
			t.Errorf("only %d states: is the model whole?", len(g.states))
		}
	}
}

// TestModelNeedsEveryRule takes the protocol's rules out, one at a time, and finds what each of them
// is there for.
func TestModelNeedsEveryRule(t *testing.T) {
	seen := map[rule]bool{}
	for _, c := range []struct {
		name string
		out  []rule
		cast cast
		want string // begins the counterexample
	}{
		{"R2 flag set by setval", []rule{flagInHold}, writers, "a switch step runs while neither side takes writes"},
		{"R1 flag set over another connection", []rule{commitIsFlip}, writers, "an acknowledged write is lost"},
		{"to opened first", []rule{closeFirst}, writers, "two"},
		{"R3 repoint between two closed gates", []rule{repointUnderHold}, writers, "a switch step runs while neither side takes writes"},
		{"writers not drained", []rule{drainWriters}, writers, "an acknowledged write is lost"},
		{"to not held", []rule{holdOnTo}, writers, "a client is refused"},
		{"R5 no dead-man's switch", []rule{deadMan}, writers, "neither side takes writes"},
		{"R7 no proof", []rule{proveNoOlder}, rogues, "a write that fired no trigger is lost"},
		{"R10 snapshot before the hold, deltas not looked at", []rule{snapshotAfterHold, drainWriters, emptyDeltas}, writers, "an acknowledged write is lost"},
		{"R19 no fingerprint before the flip", []rule{fingerprintBefore}, rogues, "a write that fired no trigger is lost"},
		{"R19 no fingerprint after the flip", []rule{fingerprintAfter}, rogues, "a write past the closed gate is lost and nobody says so"},
		{"R21 old snapshots live on", []rule{endOldSnapshots}, readers, "a session on to commits"},
		{"R26 switch steps undone under the hold", []rule{openBeforeUndo}, writers, "writers wait while"},
		{"R26 to let go before its clients are sent back", []rule{sentBackFirst}, writers, "clients are refused at to"},
		{"R26 switch steps not undone", []rule{undoSwitch}, writers, "clients are left"},
		{"decision not recorded", []rule{decideFirst}, writers, "no way leads on"},
		{"R17 flag read without its key", []rule{keyBeforeFlag}, writers, "a client is refused"},
		{"journal believed", []rule{gatesNotJournal}, writers, "two"},
		{"resolver connects after it read", []rule{sessionsBeforeRead}, writers, "two"},
		{"a replaced runner writes to the journal", []rule{epochFences}, writers, "no way leads on"},
		{"a replaced runner undoes its switch", []rule{replacedKeepsOff}, writers, "no way leads on"},
		{"no guardian", []rule{guardianWatches}, writers, "neither side takes writes until somebody types something"},
		{"a guardian that undoes no switch step", []rule{guardianSendsBack}, writers, "clients are left at a closed side until somebody types something"},
		{"a guardian records what it read a while ago", []rule{keyWhileNoting}, writers, "no way leads on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, why := walk(all(c.out...), c.cast)
			if why == "" || !strings.HasPrefix(why, c.want) {
				t.Errorf("%d states, found: %q, want %q", len(g.states), why, c.want)
			}
			t.Logf("after %d states: %s", len(g.states), why)
		})
		for _, r := range c.out {
			seen[r] = true
		}
	}
	for r := range rules {
		if !seen[r] {
			t.Errorf("rule %d is never taken out", r)
		}
	}
}
