//go:build failpoint

package freeze

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// How a scenario ended, as clients see it.
const (
	right    = "right"     // one side takes writes, and the other one's commits are all there
	lost     = "lost"      // the source acknowledged what the target does not have
	twice    = "twice"     // both sides hand out the same numbers
	twoSides = "two sides" // both take writes
	noSide   = "no side"
	unasked  = "unasked" // the source lost the writes to a rehearsal
	waiting  = "waiting" // the source's writers waited for what no budget bounds
	stale    = "stale"   // something computed from before the flip was committed after it
)

// judge compares what the source has with what was carried, then asks both sides to write.
func (p *pair) judge(carried string) string {
	p.t.Helper()
	now := p.one(p.source, accountsSQL)
	old, err := testpg.Sequences(p.t.Context(), p.source)
	if err != nil {
		p.t.Fatal(err)
	}
	next, err := testpg.Sequences(p.t.Context(), p.target)
	if err != nil {
		p.t.Fatal(err)
	}
	switch got := p.sides(); {
	case got == `source "", target ""`:
		return twoSides
	case got == `source "25006", target "25006"`:
		return noSide
	case got == "target" && now != carried:
		return lost
	case got == "target":
		for name, s := range old {
			if !strings.Contains(name, "pgrunbook") && next[name].Last < s.Last {
				return twice
			}
		}
		return right
	case got == "source":
		return right
	default:
		return got
	}
}

// at runs f once, when the freeze gets to a failpoint.
func (p *pair) at(point string, f func()) {
	done := false
	p.t.Cleanup(failpoint.On(point, func() {
		if !done {
			done = true
			f()
		}
	}))
}

// writerAt begins a transaction at a failpoint; the caller ends it.
func (p *pair) writerAt(point, sql string) *pgx.Conn {
	conn := p.connect(p.source)
	p.at(point, func() {
		if _, err := conn.PgConn().Exec(context.Background(), "BEGIN; "+sql).ReadAll(); err != nil {
			p.t.Error(err)
		}
	})
	return conn
}

// attempt may fail: then the application writes on.
func (p *pair) attempt(n int) error {
	_, err := p.freeze.Attempt(context.Background(), n)
	p.t.Logf("attempt %d: %v", n, err)
	return err
}

func (p *pair) commit(conn *pgx.Conn) {
	p.t.Helper()
	if _, err := conn.Exec(context.Background(), "COMMIT"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) endHold() {
	p.exec(p.source, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
}

var mutants = []struct {
	name  string
	play  func(p *pair) string // "" asks the judge
	dirty string
}{
	{name: "freeze.no_drain", dirty: lost, play: func(p *pair) string {
		writer := p.writerAt("freeze.prepared", "UPDATE public.account SET balance = 0 WHERE id = 2")
		_ = p.attempt(1)
		p.commit(writer)
		return ""
	}},
	{name: "freeze.no_proof", dirty: lost, play: func(p *pair) string {
		writer := p.writerAt("freeze.prepared", "ALTER TABLE public.account DISABLE TRIGGER ALL; UPDATE public.account SET balance = 0 WHERE id = 2; ALTER TABLE public.account ENABLE ALWAYS TRIGGER \"!pgrunbook_gate\"")
		_ = p.attempt(1)
		p.commit(writer)
		return ""
	}},
	{name: "freeze.no_last_look", dirty: lost, play: func(p *pair) string {
		writer := p.writerAt("freeze.decided", "ALTER TABLE public.account DISABLE TRIGGER ALL; UPDATE public.account SET balance = 0 WHERE id = 2; ALTER TABLE public.account ENABLE ALWAYS TRIGGER \"!pgrunbook_gate\"")
		_ = p.attempt(1)
		p.commit(writer)
		return ""
	}},
	{name: "freeze.no_count", dirty: lost, play: func(p *pair) string {
		p.exec(p.source, `CREATE TABLE pgrunbook.delta (id int);
			CREATE FUNCTION pgrunbook.capture() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO pgrunbook.delta VALUES (NEW.id); RETURN NULL; END';
			CREATE TRIGGER capture AFTER UPDATE ON public.account FOR EACH ROW EXECUTE FUNCTION pgrunbook.capture()`)
		p.freeze.Pending = func(context.Context) (int64, error) {
			return strconv.ParseInt(p.one(p.source, "SELECT count(*)::text FROM pgrunbook.delta"), 10, 64)
		}
		p.at("freeze.decided", func() { // the row is captured, and no later look at who writes shows it
			p.exec(p.source, gateOff+"UPDATE public.account SET balance = 0 WHERE id = 2"+gateOn)
		})
		_ = p.attempt(1)
		return ""
	}},
	{name: "freeze.flag_outside", dirty: lost, play: func(p *pair) string {
		p.at("freeze.decided", func() {
			p.endHold()
			if got := p.write(p.source); got != "" {
				p.t.Errorf("without a hold the source answers %s", got)
			}
		})
		_ = p.attempt(1)
		return ""
	}},
	{name: "freeze.setval", dirty: unasked, play: func(p *pair) string {
		p.freeze.Rehearsal = true
		_ = p.attempt(1)
		if p.sides() != "source" {
			return unasked
		}
		return ""
	}},
	{name: "freeze.sequences_first", dirty: twice, play: func(p *pair) string {
		for _, url := range []string{p.source, p.target} {
			p.exec(url, "CREATE SEQUENCE public.s")
		}
		p.freeze.Sequences = func(context.Context) (int, error) {
			p.exec(p.target, "ALTER SEQUENCE public.s RESTART "+p.one(p.source, "SELECT (last_value + 1)::text FROM public.s"))
			return 1, nil
		}
		p.at("freeze.prepared", func() { p.exec(p.source, "SELECT nextval('public.s') FROM generate_series(1, 5)") })
		_ = p.attempt(1)
		return ""
	}},
	{name: "freeze.target_first", dirty: twoSides, play: func(p *pair) string {
		p.at("freeze.between", p.endHold)
		_ = p.attempt(1)
		return ""
	}},
	{name: "freeze.trust_journal", dirty: twoSides, play: func(p *pair) string {
		if _, err := p.freeze.Resolve(context.Background()); err != nil { // decided, and then the runner died
			p.t.Error(err)
		}
		return ""
	}},
	{name: "freeze.undo_under_hold", dirty: waiting, play: func(p *pair) string {
		got := right
		p.freeze.Switch = []SwitchStep{{
			Name: "dns", Timeout: time.Minute, Do: func(context.Context) error { return errors.New("no") },
			Undo: func(context.Context) error {
				if p.one(p.source, fmt.Sprintf("SELECT pg_try_advisory_xact_lock_shared(%d)::text", int64(gateKey))) != "true" {
					got = waiting
				}
				return nil
			},
		}}
		_ = p.attempt(1)
		return got
	}},
	{name: "freeze.budget_asked", dirty: waiting, play: func(p *pair) string {
		got := right
		p.freeze.Budget = 300 * time.Millisecond
		p.freeze.Switch = []SwitchStep{{
			Name: "dns", Timeout: time.Minute, Undo: func(context.Context) error { return nil },
			Do: func(context.Context) error {
				if p.write(p.source) != "" {
					got = waiting
				}
				return nil
			},
		}}
		_ = p.attempt(1)
		return got
	}},
	{name: "freeze.old_snapshots", dirty: stale, play: func(p *pair) string {
		old := p.connect(p.target)
		if _, err := old.PgConn().Exec(context.Background(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM public.account").ReadAll(); err != nil {
			p.t.Fatal(err)
		}
		_ = p.attempt(1)
		if _, err := old.PgConn().Exec(context.Background(), "INSERT INTO public.account VALUES (99, 0); COMMIT").ReadAll(); err == nil {
			return stale
		}
		return ""
	}},
}

// TestMutants plays each scenario by the protocol and without one of its rules: clients must notice
// nothing of the first, and the second.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		for _, name := range []string{"", m.name} {
			want := m.dirty
			if name == "" {
				want = right
			}
			t.Run(m.name+"/"+want, func(t *testing.T) {
				t.Cleanup(failpoint.Mutate(name))
				p := newPair(t)
				var carried string
				p.passed = func(context.Context) error {
					carried = p.one(p.source, accountsSQL)
					return nil
				}
				got := m.play(p)
				if got == "" {
					got = p.judge(carried)
				}
				if got != want {
					t.Errorf("it ended %s, want %s", got, want)
				}
			})
		}
	}
}
