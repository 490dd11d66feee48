package cutover_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// hit is how a strike went: what the application did not get done meanwhile.
type hit struct {
	strike
	gap  time.Duration
	text string
}

// strikes is what befalls each direction: each boundary of the freeze has one fault, in one of the
// directions, and all where it matters most; with PGRUNBOOK_SOAK every boundary of both commands has all.
func strikes(ways [2]way) *assault {
	a, had := &assault{}, map[string]bool{}
	for i, y := range ways {
		for n, point := range y.freeze {
			faults := allFaults
			switch {
			case soak(), i == onSource && slices.Contains([]string{"freeze.decided", commits}, point):
			case had[point] || i == onSource && n%2 == 1:
				continue
			default:
				faults = []string{allFaults[len(had)%len(allFaults)]}
			}
			had[point] = true
			for _, f := range faults {
				a.left[i] = append(a.left[i], strike{point, f, true})
			}
		}
		if soak() {
			for _, point := range y.before {
				for _, f := range allFaults {
					a.left[i] = append(a.left[i], strike{point, f, false})
				}
			}
		}
	}
	if only := os.Getenv("PGRUNBOOK_BOUNDARY"); only != "" {
		for i := range a.left {
			a.left[i] = slices.DeleteFunc(a.left[i], func(s strike) bool { return s.point != only })
		}
	}
	return a
}

// assault is the strikes that several migrations share: one that stands still leaves the cores to others.
type assault struct {
	mu   sync.Mutex
	left [2][]strike
	hits []hit
}

// next takes a strike for a migration whose writes are on a side, if there is one left, else for the other
// direction.
func (a *assault) next(side int) (s strike, from int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range []int{side, 1 - side} {
		if len(a.left[i]) > 0 {
			s, a.left[i] = a.left[i][0], a.left[i][1:]
			return s, i, true
		}
	}
	return s, 0, false
}

func (a *assault) had(h hit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hits = append(a.hits, h)
}

// on makes a migration bear strikes until none is left, and then looks whether it has lost anything.
func (a *assault) on(w *wired, ways [2]way) {
	w.t.Helper()
	for !w.t.Failed() {
		s, from, ok := a.next(w.side)
		if !ok {
			break
		}
		w.on(from, ways)
		a.had(w.strike(ways[from], s))
	}
	w.on(onTarget, ways)
	w.same()
	w.balance(w.target)
}

// summary gives the longest gap by fault, and where.
func (a *assault) summary() string {
	var b strings.Builder
	for _, f := range allFaults {
		var gaps []time.Duration
		var worst hit
		for _, h := range a.hits {
			if h.fault == f {
				gaps = append(gaps, h.gap)
				if h.gap >= worst.gap {
					worst = h
				}
			}
		}
		if slices.Sort(gaps); len(gaps) > 0 {
			fmt.Fprintf(&b, "%-25s at %3d boundaries: median %s, longest: %s\n", f, len(gaps), gaps[len(gaps)/2].Round(time.Millisecond), worst.text)
		}
	}
	return b.String()
}
