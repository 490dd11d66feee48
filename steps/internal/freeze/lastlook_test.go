package freeze

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	gateOff = `ALTER TABLE public.account DISABLE TRIGGER "!pgrunbook_gate"; `
	gateOn  = `; ALTER TABLE public.account ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`
)

const accountsSQL = "SELECT string_agg(id || '=' || balance, ' ' ORDER BY id) FROM public.account"

func (p *pair) one(url, sql string) string {
	p.t.Helper()
	conn := p.connect(url)
	defer func() { _ = conn.Close(context.Background()) }()
	var s string
	if err := conn.QueryRow(context.Background(), sql).Scan(&s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// alsoGated makes a second gated table on both sides.
func (p *pair) alsoGated() {
	for _, url := range []string{p.source, p.target} {
		p.exec(url, `CREATE TABLE public.other (id int PRIMARY KEY);
			CREATE TRIGGER "!pgrunbook_gate" BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.other FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate();
			ALTER TABLE public.other ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`)
	}
	p.freeze.Tables = append(p.freeze.Tables, scope.Table{ID: 2, Name: scope.Name{Schema: "public", Name: "other"}})
}

// Who waits at the gate is no reason to undo an attempt: it is refused there, or ended, where nobody can tell
// whether it has written past another table's gate and would take the refusal back to a savepoint. Whoever is not
// at the gate goes on, and the attempt does not.
func TestR7WaitersInTheLastLook(t *testing.T) {
	const temp = "CREATE TEMP TABLE scratch (id int PRIMARY KEY, line text); "
	for _, c := range []struct{ name, sql, last, ends, says string }{
		{name: "a TRUNCATE", sql: "BEGIN", last: "TRUNCATE public.account, public.other", ends: "25006"},
		{name: "a TRUNCATE beside a temporary table", sql: "BEGIN; " + temp + "INSERT INTO scratch VALUES (1, 'x')", last: "TRUNCATE public.account", ends: "25006"},
		{name: "a table that was locked first", sql: "BEGIN; LOCK TABLE public.account IN EXCLUSIVE MODE", last: "INSERT INTO public.account VALUES (50, 0)", ends: "25006"},
		{name: "a row that was locked first", sql: "BEGIN; SELECT FROM public.account WHERE id = 1 FOR UPDATE", last: "UPDATE public.account SET balance = 0 WHERE id = 1", ends: "25006"},
		{name: "a table that was locked for itself", sql: "BEGIN; LOCK TABLE public.account", last: "INSERT INTO public.account VALUES (50, 0)", ends: "57P01"},
		{
			name: "a row, then a table that was locked first", last: "INSERT INTO public.account VALUES (50, 0)", ends: "57P01",
			sql: "BEGIN; SELECT FROM public.account WHERE id = 1 FOR UPDATE; LOCK TABLE public.account IN SHARE ROW EXCLUSIVE MODE",
		},
		{
			name: "a writer past the gate of another table", last: "INSERT INTO public.other VALUES (1)", ends: "57P01",
			sql: "BEGIN; " + gateOff + "UPDATE public.account SET balance = 0 WHERE id = 2" + gateOn + "; SAVEPOINT s",
		},
		{
			name: "a TRUNCATE past the gate of another table", last: "TRUNCATE public.other", ends: "57P01",
			sql: "BEGIN; " + gateOff + "TRUNCATE public.account" + gateOn + "; SAVEPOINT s",
		},
		{
			name: "a writer past the gate that is at none", last: "SELECT 1", says: "ShareRowExclusiveLock on public.account",
			sql: "BEGIN; " + gateOff + "UPDATE public.account SET balance = 0 WHERE id = 2" + gateOn,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t)
			p.alsoGated()
			p.freeze.Budget = 20 * time.Second
			late, ended := p.connect(p.source), make(chan error, 1)
			p.run(late, "CREATE TEMP TABLE earlier (id int)") // its schema is there from now on
			had := p.one(p.source, accountsSQL)
			p.passed = func(context.Context) error {
				p.run(late, c.sql)
				go func() {
					_, err := late.Exec(context.Background(), c.last)
					ended <- err
				}()
				if c.ends != "" {
					p.queued(c.last)
				}
				return nil
			}
			_, err := p.freeze.Attempt(context.Background(), 1)
			if got := state(<-ended); got != c.ends {
				t.Errorf("who waited ended with %q, want %q", got, c.ends)
			}
			if c.says == "" {
				if err != nil {
					t.Errorf("the attempt: %v", err)
				}
				if now := p.one(p.source, accountsSQL); now != had {
					t.Errorf("the source has %s, and %s was carried", now, had)
				}
				p.wantSide("target")
				return
			}
			p.run(late, "ROLLBACK")
			if !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the attempt: %v, want it to go on", err)
			}
			p.wantSide("source")
		})
	}
}

// One that our role may not end undoes the attempt, with what to type; a rehearsal ends nobody.
func TestR7WaitersThatMayNotBeEnded(t *testing.T) {
	p := newPair(t)
	mover, as := p.as(p.source, "_mover", "ALTER SCHEMA pgrunbook OWNER TO ROLE; ALTER SEQUENCE pgrunbook.gate_flag OWNER TO ROLE")
	_, app := p.as(p.source, "_app", "GRANT ALL ON public.account TO ROLE")
	p.freeze.From = server(t, "source", as)
	p.freeze.Budget = 20 * time.Second
	try := func(n int) (got string, err error) {
		late, ended := p.connect(app), make(chan error, 1)
		p.passed = func(context.Context) error {
			p.run(late, "BEGIN; LOCK TABLE public.account")
			go func() {
				_, err := late.Exec(context.Background(), "INSERT INTO public.account VALUES (50, 0)")
				ended <- err
			}()
			p.queued("INSERT")
			return nil
		}
		_, err = p.freeze.Attempt(context.Background(), n)
		got = state(<-ended)
		_ = late.Close(context.Background())
		return got, err
	}
	got, err := try(1)
	var blocked *BlockedError
	if !errors.Is(err, ErrNotNow) || !errors.As(err, &blocked) || !strings.Contains(err.Error(), "waits at the gate") || !strings.Contains(err.Error(), "GRANT pg_signal_backend TO \""+mover) || got != "" {
		t.Fatalf("without the right: %v, and who waited ended with %q", err, got)
	}
	p.wantSide("source")
	p.exec(p.source, "GRANT pg_signal_backend TO "+mover)
	p.freeze.Rehearsal = true
	if got, err := try(2); err != nil || got != "" {
		t.Fatalf("a rehearsal: %v, and who waited ended with %q", err, got)
	}
	p.wantSide("source")
	p.freeze.Rehearsal = false
	if got, err := try(3); err != nil || got != "57P01" {
		t.Fatalf("with the right: %v, and who waited ended with %q", err, got)
	}
	p.wantSide("target")
}

// A temporary table that is made in an open transaction is nobody's loss; one that is not temporary may be.
func TestR7TemporaryTablesAreInNobodysWay(t *testing.T) {
	p := newPair(t)
	report := p.connect(p.source)
	p.run(report, "CREATE TEMP TABLE earlier (id int)") // its schema is there from now on
	p.run(report, "BEGIN; CREATE TEMP TABLE scratch (id int PRIMARY KEY, line text) ON COMMIT DROP; INSERT INTO scratch VALUES (1, 'x'); CREATE INDEX ON earlier (id); TRUNCATE earlier; SELECT FROM public.account")
	p.run(report, "CREATE TABLE public.late AS SELECT 1 AS id")
	if _, err := p.freeze.Attempt(context.Background(), 1); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "created a table") {
		t.Errorf("with a table that is not temporary beside them: %v", err)
	}
	p.run(report, "ROLLBACK; BEGIN; CREATE TEMP TABLE scratch (id int PRIMARY KEY, line text) ON COMMIT DROP; INSERT INTO scratch VALUES (1, 'x'); CREATE INDEX ON earlier (id); TRUNCATE earlier; SELECT FROM public.account")
	if _, err := p.freeze.Attempt(context.Background(), 2); err != nil {
		t.Errorf("with temporary tables: %v", err)
	}
	p.wantSide("target")
}

// A rehearsal asks all that a cutover asks before it commits.
func TestRehearsalLooksLast(t *testing.T) {
	p := newPair(t)
	p.freeze.Rehearsal = true
	asked := 0
	p.freeze.Pending = func(context.Context) (int64, error) {
		asked++
		return int64(asked - 1), nil // the second time somebody has written
	}
	_, err := p.freeze.Attempt(context.Background(), 1)
	if !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "1 change came past the gate") {
		t.Errorf("got %v", err)
	}
	p.wantSide("source")
}
