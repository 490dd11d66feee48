package steps

import (
	"context"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

const patient = "cutover {\n max_write_block = \"60s\"\n attempts = 1\n retry_every = \"100ms\"\n}"

// app is a session of the application that runs one statement after the other, and may wait.
type app struct {
	r    *rig
	url  string
	conn *pgx.Conn
	done chan error
}

func (r *rig) app(url string) *app {
	r.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	r.must(err)
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &app{r: r, url: url, conn: conn, done: make(chan error, 1)}
}

func (a *app) run(sql string) {
	a.r.t.Helper()
	_, err := a.conn.PgConn().Exec(context.Background(), sql).ReadAll()
	a.r.must(err)
}

// queues sends statements and returns when they wait for a lock.
func (a *app) queues(sql string) {
	go func() {
		_, err := a.conn.PgConn().Exec(context.Background(), sql).ReadAll()
		a.done <- err
	}()
	look, err := testpg.Connect(context.Background(), a.url)
	if err != nil {
		a.r.t.Error(err)
		return
	}
	defer func() { _ = look.Close(context.Background()) }()
	waits := "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = " + strconv.Itoa(int(a.conn.PgConn().PID()))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var yes bool
		if err := look.QueryRow(context.Background(), waits).Scan(&yes); err != nil || time.Now().After(deadline) {
			a.r.t.Errorf("it does not wait: %s: %v", sql, err)
			return
		}
		if yes {
			return
		}
	}
}

// TestFreezeBesideLocks freezes while others hold or want table locks.
func TestFreezeBesideLocks(t *testing.T) {
	r := newRig(t, patient)
	r.exec(r.source, `CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER touch BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.touch();
		ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER touch;
		ALTER TABLE shop.invoice ADD CONSTRAINT small CHECK (total < 5) NOT VALID`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	// The pass has its locks before writers are held: what comes later waits at the table, and not
	// at the gate with the table in hand.
	for _, c := range []struct{ name, sql, says string }{
		{"R9 TRUNCATE of a table with changes", "TRUNCATE shop.invoice", ""},
		{"R9 TRUNCATE of a table that is reloaded", "TRUNCATE shop.log", ""},
		// Once it has its table nobody sees whether it has written already.
		{"R9 DDL and then a write", "ALTER TABLE shop.customer ADD COLUMN late int; UPDATE shop.customer SET late = 1", "AccessExclusiveLock on shop.customer"},
	} {
		t.Run(c.name, func(t *testing.T) { r.rehearsedBeside(t, c.sql, c.says) })
	}
	t.Run("R19 DDL outside of the scope costs writers no inventory", r.definesElsewhere)
	t.Run("sessions that an attempt lost are opened again", func(t *testing.T) {
		f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), r.env.Journal.Checkpoint("freeze", r.env.Sink))
		r.must(err)
		defer f.close(context.Background())
		_ = f.looks.source.Close(t.Context())
		_ = f.reload.to.Close(t.Context())
		f.Rehearsal = true
		if err := f.clearWay(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Attempt(t.Context(), 1); err != nil {
			t.Errorf("the next attempt: %v", err)
		}
	})
	t.Run("R10 a table is reloaded as it is once writers are held", func(t *testing.T) {
		f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), r.env.Journal.Checkpoint("freeze", r.env.Sink))
		r.must(err)
		defer f.close(context.Background())
		f.Rehearsal = true
		prepare := f.Prepare
		f.Prepare = func(ctx context.Context) (freeze.Pass, error) { // its locks are there; a snapshot would be too early
			p, err := prepare(ctx)
			r.exec(r.source, "INSERT INTO shop.log VALUES ('before the hold')")
			return p, err
		}
		r.must(f.clearWay(t.Context()))
		if _, err := f.Attempt(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		r.want(r.target, "SELECT count(*)::text FROM shop.log WHERE line = 'before the hold'", "1")
	})
	r.latelyChanged()
	r.exec(r.target, "ALTER TABLE shop.invoice ADD CONSTRAINT small CHECK (total < 5) NOT VALID") // as a first cutover leaves it
	vacuum := r.app(r.target)
	vacuum.run("SET application_name = 'a vacuum'; BEGIN; LOCK TABLE shop.customer IN SHARE UPDATE EXCLUSIVE MODE")
	err := r.walk(t.Context(), newFreeze(r.env, nil))
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), "a vacuum") {
		t.Errorf("with the mode of a trigger to be set behind a vacuum: %v", err)
	}
	vacuum.run("ROLLBACK")
	t.Run("R23 capture for the way back stands before the freeze", func(t *testing.T) {
		// CREATE TRIGGER would wait for this one.
		vacuum.run("BEGIN; LOCK TABLE shop.invoice, shop.event, shop.event_2026 IN SHARE UPDATE EXCLUSIVE MODE")
		late, came := r.app(r.source), false
		r.onEvent = func(e engine.Event) {
			if e.Mark == "pass" && !came { // it is reloaded already
				came = true
				late.queues("INSERT INTO shop.log VALUES ('too late')")
			}
		}
		r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
		r.onEvent = nil
		if err := <-late.done; pg.SQLState(err) != "25006" {
			t.Errorf("a row that came to a table after its reload ended with %v, want it refused", err)
		}
		r.want(r.target, "SELECT count(*)::text FROM shop.log WHERE line = 'too late'", "0")
		r.exec(r.target, "UPDATE shop.invoice SET total = 1 WHERE id = 3")
		counts, err := capture.Pending(t.Context(), vacuum.conn, nil)
		r.must(err)
		var n int64
		for _, c := range counts {
			n += c.All()
		}
		if n != 1 {
			t.Errorf("the first write after the flip left %d keys for the way back", n)
		}
		vacuum.run("ROLLBACK")
	})
}

// latelyChanged lets the source change after the final pass, past every gate: the attempt is undone.
func (r *rig) latelyChanged() {
	for _, c := range []struct{ name, sql, undo, says string }{
		{"R19 a table that is made after the decision", "CREATE TABLE shop.late (id int PRIMARY KEY)", "DROP TABLE shop.late", `"shop"."late" was made`},
		{
			"R19 a row that is written past the gate of a table that is reloaded",
			`BEGIN; ALTER TABLE shop.log DISABLE TRIGGER ALL; INSERT INTO shop.log VALUES ('past the gate'); ALTER TABLE shop.log ENABLE ALWAYS TRIGGER "!pgrunbook_gate"; COMMIT`,
			"", `log: somebody touched its gate`,
		},
		{
			"R19 a row that is written past the gate of a table whose capture stays",
			`ALTER TABLE shop.customer DISABLE TRIGGER "!pgrunbook_gate"; UPDATE shop.customer SET name = 'past the gate' WHERE id = 2; ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`,
			"", `came past the gate after the final pass`,
		},
	} {
		r.t.Run(c.name, func(t *testing.T) {
			f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), r.env.Journal.Checkpoint("freeze", r.env.Sink))
			r.must(err)
			defer f.close(context.Background())
			decide := f.Decide
			f.Decide = func(ctx context.Context, cert *freeze.Certificate) error {
				r.exec(r.source, c.sql)
				return decide(ctx, cert)
			}
			if _, err := f.Attempt(t.Context(), 1); !errors.Is(err, freeze.ErrNotNow) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the attempt: %v", err)
			}
			owner, err := r.env.Journal.Owner(t.Context())
			r.must(err)
			if owner.Side != engine.Source {
				t.Errorf("the %s takes writes", owner.Side)
			}
			r.exec(r.source, "UPDATE shop.customer SET name = name WHERE id = 1")
			if c.undo != "" {
				r.exec(r.source, c.undo)
			}
		})
	}
}

// rehearsedBeside makes a freeze while an application's statements come, which take a strong lock and
// then want the gate. They are rolled back in the end. Who may be in the way of the last look is said by its name.
func (r *rig) rehearsedBeside(t *testing.T, sql, says string) {
	writer := r.app(r.source)
	queued := false
	r.onEvent = func(e engine.Event) {
		switch {
		case strings.HasPrefix(e.Message, "pass of"): // so that the final pass has something to carry
			r.exec(r.source, "UPDATE shop.invoice SET total = total WHERE id < 4; UPDATE shop.customer SET name = name || '.' WHERE id < 5")
		case e.Mark == "hold" && !queued:
			queued = true
			writer.queues("BEGIN; " + sql + "; ROLLBACK")
		}
	}
	defer func() { r.onEvent = nil }()
	done, err := Rehearse(t.Context(), r.env, engine.SinkFunc(r.emit))
	inTheWay := err != nil && says != "" && strings.Contains(err.Error(), says)
	if err != nil && !inTheWay {
		t.Errorf("the freeze: %v", err)
	}
	if !queued || done.Rows == 0 && !inTheWay {
		t.Errorf("queued %v, and the final pass carried %d rows: it proves nothing", queued, done.Rows)
	}
	if err := <-writer.done; err != nil {
		t.Errorf("the application's %s: %v", sql, err)
	}
	r.sameTables(t)
}

// definesElsewhere lets somebody make a table in another schema while writers are held: it is told by its name
// that it is none of ours.
func (r *rig) definesElsewhere(t *testing.T) {
	f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), r.env.Journal.Checkpoint("freeze", r.env.Sink))
	r.must(err)
	defer f.close(context.Background())
	inventory := func() uintptr {
		_, items, _ := r.env.watch.last()
		return reflect.ValueOf(items).Pointer()
	}
	var before uintptr
	sequences := f.Sequences
	f.Sequences = func(ctx context.Context) (int, error) {
		before = inventory()
		r.exec(r.source, "CREATE SCHEMA elsewhere; CREATE TYPE elsewhere.mood AS ENUM ('sad'); CREATE TABLE elsewhere.made (id serial PRIMARY KEY, m elsewhere.mood)")
		return sequences(ctx)
	}
	f.Rehearsal = true
	if _, err := f.Attempt(t.Context(), 1); err != nil {
		t.Errorf("the attempt: %v", err)
	}
	if before == 0 || inventory() != before {
		t.Error("the definitions were read anew while writers were held")
	}
	r.exec(r.source, "DROP SCHEMA elsewhere CASCADE")
}
