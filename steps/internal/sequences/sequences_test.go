package sequences

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func pair(t *testing.T) (from, to *pgx.Conn) {
	t.Helper()
	source, target := testpg.Pair(t)
	open := func(side, url string) *pgx.Conn {
		s, err := pg.New(pg.Config{Side: side, URL: url, RunID: "test", Mark: "mark"})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := s.Connect(testContext(t), pg.Use{Name: "test"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
	return open("source", source), open("target", target)
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(testContext(t), sql).ReadAll(); err != nil {
		t.Fatalf("running %.300s: %v", sql, err)
	}
}

// nextval gives the next value, or the SQLSTATE of the refusal.
func nextval(t *testing.T, conn *pgx.Conn, name string) string {
	t.Helper()
	var v int64
	if err := conn.QueryRow(testContext(t), "SELECT nextval($1::text::regclass)", pgx.QueryExecModeExec, name).Scan(&v); err != nil {
		return pg.SQLState(err)
	}
	return fmt.Sprint(v)
}

func seq(name string, owner ...string) scope.Sequence {
	s := scope.Sequence{Name: scope.Name{Schema: "public", Name: name}, Increment: 1}
	if len(owner) == 2 {
		s.OwnerTable, s.OwnerColumn = &scope.Name{Schema: "public", Name: owner[0]}, owner[1]
	}
	return s
}

func TestCarry(t *testing.T) {
	const exhausted = "2200H" // sequence_generator_limit_exceeded
	cases := []struct {
		name   string
		define string // on both sides; s is the sequence unless the case names another
		source string // what happened on the source
		target string // and on the target
		seq    scope.Sequence
		margin int64
		want   string // what the target hands out next
	}{
		{name: "called", source: "SELECT nextval('public.s') FROM generate_series(1, 7)", margin: 10, want: "18"},
		{name: "not called yet", margin: 10, want: "11"},
		{name: "not called, start moved", source: "SELECT setval('public.s', 500, false)", margin: 10, want: "510"},
		{name: "not called, no margin", want: "1"},
		{name: "not called, descending", define: "CREATE SEQUENCE public.s INCREMENT -5", margin: 10, want: "-51"},
		{name: "not called, few left keep half", define: "CREATE SEQUENCE public.s MAXVALUE 7", margin: 10, want: "4"},
		{name: "not called, one left", define: "CREATE SEQUENCE public.s AS smallint", source: "SELECT setval('public.s', 32767, false)", margin: 10, want: "32767"},
		{name: "no margin", source: "SELECT setval('public.s', 41)", want: "42"},
		{name: "stride is kept", define: "CREATE SEQUENCE public.s INCREMENT 50", source: "SELECT nextval('public.s')", margin: 2, want: "151"},
		{name: "descending", define: "CREATE SEQUENCE public.s INCREMENT -1", source: "SELECT setval('public.s', -20)", margin: 5, want: "-26"},
		{name: "descending never goes back up", define: "CREATE SEQUENCE public.s INCREMENT -1", source: "SELECT setval('public.s', -20)", target: "SELECT setval('public.s', -90)", margin: 5, want: "-91"},
		{name: "cycle", define: "CREATE SEQUENCE public.s MAXVALUE 10 CYCLE", source: "SELECT setval('public.s', 10)", margin: 5, want: "1"},
		{name: "cycle came round", define: "CREATE SEQUENCE public.s MAXVALUE 100 CYCLE", source: "SELECT setval('public.s', 3)", target: "SELECT setval('public.s', 80)", margin: 5, want: "9"},
		{name: "cached", define: "CREATE SEQUENCE public.s CACHE 20", source: "SELECT nextval('public.s')", margin: 1, want: "22"},
		{name: "smallint near its end keeps half", define: "CREATE SEQUENCE public.s AS smallint", source: "SELECT setval('public.s', 32757)", margin: 1000, want: "32763"},
		{name: "smallint, last value left", define: "CREATE SEQUENCE public.s AS smallint", source: "SELECT setval('public.s', 32766)", margin: 1000, want: "32767"},
		{name: "exhausted stays exhausted", define: "CREATE SEQUENCE public.s AS smallint", source: "SELECT setval('public.s', 32767)", margin: 1000, want: exhausted},
		{name: "bigint at its limit", source: "SELECT setval('public.s', 9223372036854775806)", margin: 1000, want: "9223372036854775807"},
		{name: "set backwards on the source", source: "SELECT setval('public.s', 5)", target: "SELECT setval('public.s', 900)", margin: 10, want: "901"},
		{
			name: "serial behind its column", define: "CREATE TABLE public.t (id serial PRIMARY KEY)", seq: seq("t_id_seq", "t", "id"),
			source: "SELECT nextval('public.t_id_seq')", target: "INSERT INTO public.t VALUES (77)", margin: 5, want: "78",
		},
		{
			name: "identity", define: "CREATE TABLE public.t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)", seq: seq("t_id_seq", "t", "id"),
			source: "INSERT INTO public.t (v) VALUES (1), (2), (3)", margin: 5, want: "9",
		},
		{name: "a name with quotes", define: `CREATE SEQUENCE public."S 'x""y"`, seq: seq(`S 'x"y`), source: `SELECT nextval('public."S ''x""y"')`, margin: 1, want: "3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			from, to := pair(t)
			if c.define == "" {
				c.define = "CREATE SEQUENCE public.s"
			}
			if c.seq.Name.Name == "" {
				c.seq = seq("s")
			}
			for _, conn := range []*pgx.Conn{from, to} {
				run(t, conn, c.define)
			}
			if c.source != "" {
				run(t, from, c.source)
			}
			if c.target != "" {
				run(t, to, c.target)
			}
			ctx := testContext(t)
			for range 2 { // the second time changes nothing
				if _, err := Carry(ctx, from, to, []scope.Sequence{c.seq}, c.margin, true); err != nil {
					t.Fatal(err)
				}
			}
			if got := nextval(t, to, pg.Name(c.seq.Schema, c.seq.Name.Name)); got != c.want {
				t.Errorf("the target hands out %s, want %s", got, c.want)
			}
		})
	}
}

// A flip sets the new side's sequences as never called. What is taken late on either side, on the way there and back,
// comes from none of them again, and Behind names those where more than the margin was taken.
func TestNothingTakenLateIsHandedOutAgain(t *testing.T) {
	from, to := pair(t)
	for _, conn := range []*pgx.Conn{from, to} {
		run(t, conn, "CREATE SEQUENCE public.s")
	}
	const margin = 10
	for _, way := range []string{"there", "back", "there again"} {
		if _, err := Carry(testContext(t), from, to, []scope.Sequence{seq("s")}, margin, true); err != nil {
			t.Fatal(err)
		}
		for late, calls := range map[bool]int{false: margin, true: margin + 1} {
			run(t, from, fmt.Sprintf("SELECT nextval('public.s') FROM generate_series(1, %d)", calls))
			old, now := state(t, from), state(t, to)
			next := newNumbers(now).next(now).Int64()
			if behind := len(Behind([]State{old}, []State{now})) > 0; behind != late || next <= old.Last != late {
				t.Errorf("%s: %d were taken late, up to %d, and the new side hands out %d; behind: %t", way, calls, old.Last, next, behind)
			}
			run(t, from, fmt.Sprintf("SELECT setval('public.s', %d, false)", old.Last-int64(calls)+1))
		}
		from, to = to, from
	}
}

func state(t *testing.T, conn *pgx.Conn) State {
	t.Helper()
	states, err := Read(testContext(t), conn, []scope.Sequence{seq("s")})
	if err != nil {
		t.Fatal(err)
	}
	return states[0]
}

// Another session's cached values would come out behind what was carried.
func TestR15CachesOfOthersAreDropped(t *testing.T) {
	from, to := pair(t)
	for _, conn := range []*pgx.Conn{from, to} {
		run(t, conn, "CREATE SEQUENCE public.s CACHE 20")
	}
	run(t, from, "SELECT setval('public.s', 5000)")
	if got := nextval(t, to, "public.s"); got != "1" {
		t.Fatalf("first value is %s", got)
	}
	other, err := pgx.ConnectConfig(testContext(t), to.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(context.WithoutCancel(t.Context())) })
	if _, err := Carry(testContext(t), from, other, []scope.Sequence{seq("s")}, 1000, false); err != nil {
		t.Fatal(err)
	}
	if got := nextval(t, to, "public.s"); got != "6001" {
		t.Errorf("a session with cached values hands out %s, want 6001", got)
	}
}

func TestManyAtOnceAndOnlyWhatMoved(t *testing.T) {
	from, to := pair(t)
	var seqs []scope.Sequence
	for i := range 300 {
		seqs = append(seqs, seq(fmt.Sprintf("s%d", i)))
	}
	for _, conn := range []*pgx.Conn{from, to} {
		run(t, conn, "DO $$ BEGIN FOR i IN 0..299 LOOP EXECUTE 'CREATE SEQUENCE public.s' || i; END LOOP; END $$")
	}
	run(t, from, "SELECT setval('public.s' || i, 10 + i) FROM generate_series(0, 299, 2) i")
	changes, err := Carry(testContext(t), from, to, seqs, 0, false)
	if err != nil || len(changes) != 150 {
		t.Fatalf("%d changes, %v", len(changes), err)
	}
	for i, want := range map[int]string{0: "11", 1: "1", 298: "309"} {
		if got := nextval(t, to, fmt.Sprintf("public.s%d", i)); got != want {
			t.Errorf("s%d hands out %s, want %s", i, got, want)
		}
	}
}

func TestR15TheGatesSequenceIsNotCarried(t *testing.T) {
	from, to := pair(t)
	gate := scope.Sequence{Name: scope.Name{Schema: "pgrunbook", Name: "gate_flag"}}
	if _, err := Carry(testContext(t), from, to, []scope.Sequence{gate}, 0, false); err == nil {
		t.Error("the gate's sequence was read")
	}
	if _, err := Read(testContext(t), from, []scope.Sequence{seq("gone")}); err == nil {
		t.Error("a sequence that is not there was read")
	}
}

// TestRaise: a side that goes on alone hands out nothing that the lost one may have handed out, also
// of a sequence that was not called here.
func TestRaise(t *testing.T) {
	conn, _ := pair(t)
	run(t, conn, `CREATE SEQUENCE public.called; CREATE SEQUENCE public.fresh START 500; CREATE SEQUENCE public.down INCREMENT -5;
SELECT setval('public.called', 70); SELECT nextval('public.down'); CREATE TABLE public.t (id serial PRIMARY KEY); INSERT INTO public.t VALUES (9000)`)
	seqs := []scope.Sequence{seq("called"), seq("fresh"), seq("down"), seq("t_id_seq", "t", "id")}
	if err := Raise(testContext(t), conn, seqs, 100); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"called": "171", "fresh": "600", "down": "-506", "t_id_seq": "9001"} {
		if got := nextval(t, conn, "public."+name); got != want {
			t.Errorf("%s hands out %s, want %s", name, got, want)
		}
	}
}
