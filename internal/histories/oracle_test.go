package histories_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// outcome is what a client knows of a transaction.
type outcome int

const (
	unknown      outcome = iota // COMMIT was sent, no answer came
	acknowledged                // the server said so
	refused                     // it said no, or was never asked
)

// record is one transaction as its client saw it.
type record struct {
	number   int
	writer   int
	lists    []int
	seen     map[int][]int // the lists as they were with its own number at the end
	transfer *Transfer
	result   outcome
}

// account is the clients' book: outside of the database, and of the product.
type account struct {
	mu      sync.Mutex
	records map[int]*record
}

func (a *account) put(r *record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.records == nil {
		a.records = map[int]*record{}
	}
	a.records[r.number] = r
}

// lists reads the lists as they are.
func lists(ctx context.Context, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
},
) (map[int][]int, error) {
	rows, err := q.Query(ctx, "SELECT k, v FROM h.list")
	if err != nil {
		return nil, err
	}
	out := map[int][]int{}
	var k int
	var v string
	_, err = pgx.ForEachRow(rows, []any{&k, &v}, func() error {
		if _, twice := out[k]; twice {
			return fmt.Errorf("list %d is there twice", k)
		}
		out[k], err = numbers(v)
		return err
	})
	return out, err
}

// numbers reads a list: "4,17,".
func numbers(v string) ([]int, error) {
	list := []int{}
	for s := range strings.SplitSeq(strings.TrimSuffix(v, ","), ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

// check compares the book with the lists and balances of a database. What it says, one a line, is
// empty where nothing was lost, invented, doubled, torn or reordered.
func (a *account) check(final map[int][]int, balances map[int]int64) (wrong []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if len(final) != listCount {
		say("there are %d lists, want %d", len(final), listCount)
	}
	there := map[int]map[int]bool{} // number, list
	for k, list := range final {
		for _, n := range list {
			switch {
			case a.records[n] == nil || a.records[n].result == refused:
				say("list %d has %d, which nobody committed", k, n)
			case there[n][k]:
				say("list %d has %d twice", k, n)
			}
			if there[n] == nil {
				there[n] = map[int]bool{}
			}
			there[n][k] = true
		}
	}
	want := map[int]int64{}
	for i := range accounts {
		want[i] = startBalance
	}
	for _, n := range slices.Sorted(maps.Keys(a.records)) {
		r := a.records[n]
		if r.result == refused {
			continue
		}
		if got := len(there[n]); got != len(r.lists) && (r.result == acknowledged || got > 0) {
			say("transaction %d (%s) is in %d of its %d lists: %s", n, cond(r.result == acknowledged, "acknowledged", "outcome unknown"), got, len(r.lists), cond(got == 0, "lost", "torn"))
		}
		for k, seen := range r.seen {
			if there[n][k] && (len(seen) > len(final[k]) || !slices.Equal(seen, final[k][:len(seen)])) {
				say("list %d was %v after transaction %d and is %v", k, tail(seen), n, tail(final[k]))
			}
		}
		if r.transfer != nil && len(there[n]) > 0 {
			want[r.transfer.From] -= int64(r.transfer.Amount)
			want[r.transfer.To] += int64(r.transfer.Amount)
		}
	}
	for i := range accounts {
		if balances[i] != want[i] {
			say("account %d has %d, its transfers say %d", i, balances[i], want[i])
		}
	}
	if cycle := a.cycle(final); cycle != nil {
		say("no order of transactions explains the lists: each of %v comes before the next", cycle)
	}
	return wrong
}

func tail(list []int) []int { return list[max(0, len(list)-8):] }

// cycle looks for transactions that came before each other: a before b in one list, and b before a
// by another list or by a client that did one after the other (Adya's G0, with sessions).
func (a *account) cycle(final map[int][]int) []int {
	next := map[int][]int{}
	last := map[int]int{} // of a writer
	var order []int
	for _, list := range final {
		for i := 1; i < len(list); i++ {
			next[list[i-1]] = append(next[list[i-1]], list[i])
		}
		order = append(order, list...)
	}
	slices.Sort(order)
	order = slices.Compact(order)
	for _, n := range order { // numbers of one writer grow
		r := a.records[n]
		if r == nil {
			continue
		}
		if before, ok := last[r.writer]; ok {
			next[before] = append(next[before], n)
		}
		last[r.writer] = n
	}
	state := map[int]int{} // 1: on the way, 2: done
	var path []int
	var walk func(n int) bool
	walk = func(n int) bool {
		state[n] = 1
		path = append(path, n)
		for _, m := range next[n] {
			if state[m] == 1 {
				path = path[slices.Index(path, m):]
				return true
			}
			if state[m] == 0 && walk(m) {
				return true
			}
		}
		state[n] = 2
		path = path[:len(path)-1]
		return false
	}
	for _, n := range order {
		if state[n] == 0 && walk(n) {
			return path
		}
	}
	return nil
}
