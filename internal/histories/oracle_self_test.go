package histories_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestBook: the oracle sees each thing that may go wrong with transactions, and nothing where all is
// well. Writer 1 made 11 and 12, writer 2 made 21 to 23; 22 was refused, of 23 nobody knows.
func TestBook(t *testing.T) {
	book := func() *account {
		a := &account{}
		a.put(&record{number: 11, writer: 1, lists: []int{0, 1}, result: acknowledged, seen: map[int][]int{0: {11}, 1: {21, 11}}, transfer: &Transfer{From: 0, To: 1, Amount: 5}})
		a.put(&record{number: 12, writer: 1, lists: []int{0}, result: acknowledged, seen: map[int][]int{0: {11, 12}}})
		a.put(&record{number: 21, writer: 2, lists: []int{1}, result: acknowledged, seen: map[int][]int{1: {21}}})
		a.put(&record{number: 22, writer: 2, lists: []int{2}, result: refused})
		a.put(&record{number: 23, writer: 2, lists: []int{2, 3}, result: unknown, transfer: &Transfer{From: 2, To: 3, Amount: 7}})
		return a
	}
	lists := func(change map[int][]int) map[int][]int {
		all := map[int][]int{0: {11, 12}, 1: {21, 11}, 2: {}, 3: {}, 4: {}, 5: {}}
		maps.Copy(all, change)
		return all
	}
	moved := map[int]int64{0: -5, 1: 5}
	for name, c := range map[string]struct {
		lists map[int][]int
		moved map[int]int64
		want  string // part of what is said; "" is nothing
	}{
		"all is well":                {lists(nil), moved, ""},
		"the unknown one came too":   {lists(map[int][]int{2: {23}, 3: {23}}), map[int]int64{0: -5, 1: 5, 2: -7, 3: 7}, ""},
		"a lost one":                 {lists(map[int][]int{0: {11}}), moved, "lost"},
		"a torn one":                 {lists(map[int][]int{1: {21}}), moved, "torn"},
		"a torn one of the unknown":  {lists(map[int][]int{2: {23}}), map[int]int64{0: -5, 1: 5, 2: -7, 3: 7}, "torn"},
		"a doubled one":              {lists(map[int][]int{0: {11, 12, 12}}), moved, "twice"},
		"a refused one":              {lists(map[int][]int{2: {22}}), moved, "nobody committed"},
		"one of nobody":              {lists(map[int][]int{4: {99}}), moved, "nobody committed"},
		"another order":              {lists(map[int][]int{0: {12, 11}}), moved, "was [11] after transaction 11"},
		"a lost list":                {map[int][]int{0: {11, 12}, 1: {21, 11}}, moved, "there are 2 lists"},
		"half a transfer":            {lists(nil), map[int]int64{0: -5}, "account 1 has"},
		"a transfer that nobody won": {lists(nil), map[int]int64{0: -5, 1: 5, 2: -7, 3: 7}, "account 2 has"},
	} {
		balances := map[int]int64{}
		for i := range accounts {
			balances[i] = startBalance + c.moved[i]
		}
		wrong := strings.Join(book().check(c.lists, balances), "\n")
		if c.want == "" && wrong != "" || !strings.Contains(wrong, c.want) {
			t.Errorf("%s: %q, want %q", name, wrong, c.want)
		}
	}
}

// TestNote: what the gate says to a writer, and that one is ended while it waits there, is no harm done by us; any
// other error from there is.
func TestNote(t *testing.T) {
	const gate = `PL/pgSQL function pgrunbook.gate() line 5 at PERFORM`
	for _, c := range []struct {
		err  pgconn.PgError
		want string // part of what is said; "" is nothing
	}{
		{pgconn.PgError{Code: "25006", Message: "this database has moved to another server", Where: gate}, ""},
		{pgconn.PgError{Code: "25006", Message: "closed", Where: gate}, "in other words"},
		{pgconn.PgError{Code: "57P01", Message: "terminating connection due to administrator command", Where: gate}, ""},
		{pgconn.PgError{Code: "57014", Message: "canceling statement due to statement timeout", Where: gate}, "failed because of us"},
		{pgconn.PgError{Code: "42883", Message: "function pgrunbook.gate() does not exist"}, "failed because of us"},
		{pgconn.PgError{Code: "23505", Message: "duplicate key value"}, ""},
	} {
		rec := &recorder{}
		(&client{w: &world{recorder: rec}}).note(&c.err, Op{})
		if got := strings.Join(rec.errs, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.err.Code, c.err.Message, got, c.want)
		}
	}
}

// TestCycle: two transactions of which each came before the other one.
func TestCycle(t *testing.T) {
	a := &account{}
	for _, n := range []int{1, 2, 3} {
		a.put(&record{number: n, writer: n, lists: []int{0, 1}, result: acknowledged})
	}
	if c := a.cycle(map[int][]int{0: {1, 2, 3}, 1: {1, 2, 3}}); c != nil {
		t.Errorf("a cycle where there is none: %v", c)
	}
	c := a.cycle(map[int][]int{0: {1, 2, 3}, 1: {2, 1, 3}})
	if slices.Sort(c); !slices.Equal(c, []int{1, 2}) {
		t.Errorf("the cycle of 1 and 2: %v", c)
	}
}

// TestCannotRun: a statement that no server could have run fails its history, unless DDL came into its
// table; a conflict of writers does not.
func TestCannotRun(t *testing.T) {
	for _, c := range []struct {
		code, touched string
		want          bool
	}{{"42703", "", true}, {"42703", "t1", false}, {"23505", "", false}, {"40001", "", false}} {
		w := &world{recorder: &recorder{}, h: History{Tables: []Table{{Name: "t1", Of: "plain"}}}, fired: map[string]int{}, touched: []string{c.touched}}
		(&client{w: w}).ran(Stmt{Table: "t1", SQL: "UPDATE h.t1 SET nothing = 1"}, &pgconn.PgError{Code: c.code})
		if w.failed() != c.want || w.fired["refused: plain"] != 1 {
			t.Errorf("SQLSTATE %s with DDL on %q: %v, %v", c.code, c.touched, w.errs, w.fired)
		}
	}
}
