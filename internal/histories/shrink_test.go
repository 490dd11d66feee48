package histories_test

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// ddmin finds a small subset of 0..n-1 for which fails is true (Zeller and Hildebrandt, "Simplifying
// and isolating failure-inducing input", 2002). fails is true for the whole.
func ddmin(n int, fails func(keep []int) bool) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if n > 0 && fails(nil) {
		return nil
	}
	for parts := 2; len(all) > 1; {
		parts = min(parts, len(all))
		smaller := false
		for i := range parts {
			from, to := i*len(all)/parts, (i+1)*len(all)/parts
			rest := slices.Concat(all[:from], all[to:])
			if len(rest) < len(all) && fails(rest) {
				all, parts, smaller = rest, max(parts-1, 2), true
				break
			}
		}
		if !smaller {
			if parts == len(all) {
				break
			}
			parts *= 2
		}
	}
	return all
}

// cut is one way in which a history can be made smaller: it has a number of parts, and can be had
// with some of them.
type cut struct {
	count func(h *History) int
	keep  func(h *History, part int, kept bool) // called once for each part, the last one first
}

func each(h *History, f func(op *Op)) {
	for w := range h.Writers {
		for o := range h.Writers[w].Ops {
			f(&h.Writers[w].Ops[o])
		}
	}
}

// remove drops the part-th of all elements of many lists.
func remove[T any](part int, lists ...*[]T) {
	for _, l := range lists {
		if part < len(*l) {
			*l = slices.Delete(*l, part, part+1)
			return
		}
		part -= len(*l)
	}
}

func cutOf[T any](lists func(h *History) []*[]T) cut {
	return cut{
		count: func(h *History) int {
			n := 0
			for _, l := range lists(h) {
				n += len(*l)
			}
			return n
		},
		keep: func(h *History, part int, kept bool) {
			if !kept {
				remove(part, lists(h)...)
			}
		},
	}
}

// cuts, the coarse ones first.
var cuts = []cut{
	cutOf(func(h *History) (l []*[]Fault) {
		for i := range h.Commands {
			l = append(l, &h.Commands[i].Faults)
		}
		return l
	}),
	cutOf(func(h *History) (l []*[]Event) {
		for i := range h.Commands {
			l = append(l, &h.Commands[i].Events)
		}
		return l
	}),
	cutOf(func(h *History) []*[]Writer { return []*[]Writer{&h.Writers} }),
	{
		count: func(h *History) int { return len(h.Tables) },
		keep: func(h *History, part int, kept bool) {
			if !kept {
				*h = h.withoutTables(map[string]bool{h.Tables[part].Name: true})
			}
		},
	},
	cutOf(func(h *History) []*[]Command { return []*[]Command{&h.Commands} }),
	cutOf(func(h *History) (l []*[]Op) {
		for i := range h.Writers {
			l = append(l, &h.Writers[i].Ops)
		}
		return l
	}),
	cutOf(func(h *History) (l []*[]Stmt) {
		each(h, func(op *Op) { l = append(l, &op.Body) })
		return l
	}),
	cutOf(func(h *History) (l []*[]int) {
		each(h, func(op *Op) { l = append(l, &op.Lists) })
		return l
	}),
}

// shrink cuts a history as long as it fails, until a deadline or until nothing can go.
func shrink(h History, deadline time.Time, fails func(History) bool) History {
	for before := ""; before != h.json() && time.Now().Before(deadline); {
		before = h.json()
		for _, c := range cuts {
			n := c.count(&h)
			without := func(keep []int) History {
				smaller := h.clone()
				for part := n - 1; part >= 0; part-- {
					c.keep(&smaller, part, slices.Contains(keep, part))
				}
				return smaller
			}
			kept := ddmin(n, func(keep []int) bool {
				smaller := without(keep)
				return valid(smaller) && time.Now().Before(deadline) && fails(smaller)
			})
			if len(kept) < n {
				h = without(kept)
			}
		}
	}
	each(&h, func(op *Op) { op.Think = max(op.Think, 1) })
	return h
}

// valid keeps cuts from making another problem: a rollback needs a flip before it, a step to stop after
// must be there, a transfer needs a list that says whether it was made.
func valid(h History) bool {
	owner := 0
	for _, c := range h.Commands {
		switch verb, _, _ := strings.Cut(c.Args, " "); {
		case c.Args == "apply":
			owner = 1
		case c.Args == "apply --until verify" && h.NoVerify, verb == "rollback" && owner == 0, verb == "finish" && owner == 0, verb == "rehearse" && owner == 1, verb == "abort" && owner == 1:
			return false
		case verb == "rollback":
			owner = 0
		}
	}
	ok := true
	each(&h, func(op *Op) { ok = ok && (op.Transfer == nil || len(op.Lists) > 0) })
	return ok && len(h.Commands) > 0
}

// TestShrink cuts seeds to what a made-up failure needs, and no more.
func TestShrink(t *testing.T) {
	truncates := func(h History) (n int) {
		each(&h, func(op *Op) {
			for _, s := range op.Body {
				n += cond(strings.HasPrefix(s.SQL, "TRUNCATE"), 1, 0)
			}
		})
		return n
	}
	kills := func(h History) (n int) {
		for _, c := range h.Commands {
			for _, ft := range c.Faults {
				n += cond(c.Args == "apply" && (ft.Kind == "kill" || ft.Kind == "point"), 1, 0)
			}
		}
		return n
	}
	tried := 0
	for seed := uint64(1); tried < 8; seed++ {
		h := generate(seed, 15, false)
		asked := 0
		fails := func(h History) bool {
			asked++
			return truncates(h) >= 1 && kills(h) >= 1
		}
		if !fails(h) {
			continue
		}
		tried++
		small := shrink(h, time.Now().Add(time.Minute), fails)
		if !fails(small) || small.size() != "1 tables, 1 writers, 1 transactions, 1 statements, 1 commands, 1 faults, 0 events" {
			t.Errorf("seed %d (%s) was cut to: %s\n%s", seed, h.size(), small.size(), small)
		}
		if asked > 500 {
			t.Errorf("seed %d: %d plays to cut it", seed, asked)
		}
	}
}

// TestGenerate: a seed is a history, always the same one, and one that can be stored.
func TestGenerate(t *testing.T) {
	for seed := range uint64(100) {
		h := generate(seed, 15, seed%10 == 0)
		if h.json() != generate(seed, 15, seed%10 == 0).json() || h.clone().json() != h.json() {
			t.Fatalf("seed %d makes two histories", seed)
		}
		if !valid(h) {
			t.Errorf("seed %d makes no migration:\n%s", seed, h)
		}
	}
}
