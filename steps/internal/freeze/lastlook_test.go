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

// alsoGated makes a second gated table on both sides.
func (p *pair) alsoGated() {
	for _, url := range []string{p.source, p.target} {
		p.exec(url, `CREATE TABLE public.other (id int PRIMARY KEY);
			CREATE TRIGGER "!pgrunbook_gate" BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.other FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate();
			ALTER TABLE public.other ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`)
	}
	p.freeze.Tables = append(p.freeze.Tables, scope.Table{ID: 2, Name: scope.Name{Schema: "public", Name: "other"}})
}

// Who waits at the gate is no reason to undo an attempt, unless it has written past another table's: it
// may take the refusal back to a savepoint and commit the rest.
func TestR7WaitersInTheLastLook(t *testing.T) {
	for _, c := range []struct{ name, sql, last, says string }{
		{name: "a TRUNCATE", sql: "BEGIN", last: "TRUNCATE public.account, public.other"},
		{name: "a table that was locked first", sql: "BEGIN; LOCK TABLE public.account IN EXCLUSIVE MODE", last: "INSERT INTO public.account VALUES (50, 0)"},
		{name: "a row that was locked first", sql: "BEGIN; SELECT FROM public.account WHERE id = 1 FOR UPDATE", last: "UPDATE public.account SET balance = 0 WHERE id = 1"},
		{
			name: "a writer past the gate of another table", last: "INSERT INTO public.other VALUES (1)", says: "ShareRowExclusiveLock on public.account",
			sql: "BEGIN; " + gateOff + "UPDATE public.account SET balance = 0 WHERE id = 2" + gateOn + "; SAVEPOINT s",
		},
		{
			name: "a TRUNCATE past the gate of another table", last: "TRUNCATE public.other", says: "AccessExclusiveLock on public.account",
			sql: "BEGIN; " + gateOff + "TRUNCATE public.account" + gateOn + "; SAVEPOINT s",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t)
			p.alsoGated()
			p.freeze.Budget = 20 * time.Second
			late, ended := p.connect(p.source), make(chan error, 1)
			p.passed = func(context.Context) error {
				p.run(late, c.sql)
				go func() {
					_, err := late.Exec(context.Background(), c.last)
					ended <- err
				}()
				p.queued(c.last)
				return nil
			}
			_, err := p.freeze.Attempt(context.Background(), 1)
			got := state(<-ended)
			p.run(late, "ROLLBACK")
			if c.says == "" {
				if err != nil || got != "25006" {
					t.Errorf("the attempt: %v; who waited ended with %q, want it refused", err, got)
				}
				p.wantSide("target")
				return
			}
			if !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), c.says) || got != "" {
				t.Errorf("the attempt: %v; who waited ended with %q, want it to go on", err, got)
			}
			p.wantSide("source")
		})
	}
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
