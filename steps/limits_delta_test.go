package steps

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// deltaLimited has a limit of 64 KiB on the deltas, tables as limited has them, and rates at which a load takes half a minute.
func deltaLimited(t *testing.T, then string) *limited {
	t.Helper()
	source, target := testpg.Pair(t)
	extra := "table \"shop.early\" { chunk = \"1GiB\" }\nschema { on_ddl = \"carry\" }\ncopy {\n  workers = 2\n  chunk = \"256KiB\"\n}\nlimit \"copy_rate\" { max = \"200KiB/s\" }\n" +
		"limit \"delta_size\" {\n  max = \"64KiB\"\n  then = \"" + then + "\"\n}"
	l := &limited{rig: newRigOn(t, source, target, strings.ReplaceAll(limitedSetup, "20000", "6000"), extra)}
	l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
	return l
}

// soonLate lets changes be late soon.
func soonLate(t *testing.T) {
	every, late := followEvery, lateAfter
	followEvery, lateAfter = 50*time.Millisecond, 500*time.Millisecond
	t.Cleanup(func() { followEvery, lateAfter = every, late })
}

// backlog is far over the limit.
func (l *limited) backlog() {
	l.t.Helper()
	l.exec(l.source, "INSERT INTO shop.early (id, pad) SELECT g, 'more' FROM generate_series(1000, 5999) g ON CONFLICT (id) DO UPDATE SET pad = early.pad || '!'")
}

// writer is an application that writes to a loaded table until it is told to stop.
func (l *limited) writer() (stop func()) {
	l.t.Helper()
	conn, err := testpg.Connect(l.t.Context(), l.source)
	l.must(err)
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			_, err = conn.Exec(context.WithoutCancel(ctx), "UPDATE shop.early SET pad = left(pad || '?', 100) WHERE id = 1")
			time.Sleep(2 * time.Millisecond)
		}
		done <- errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}()
	return func() {
		l.t.Helper()
		cancel()
		l.must(<-done)
	}
}

// copying waits until big is being loaded, and early is there.
func (l *limited) copying() {
	l.t.Helper()
	l.until("early is loaded, and big is not", func() bool { return l.follows("early") && !l.follows("big") })
}

// over waits for the end of what was started, which nothing slows down any more.
func (l *limited) over() {
	l.t.Helper()
	l.setting("copy_rate", Unlimited)
	select {
	case err := <-l.ended:
		l.must(err)
	case <-time.After(time.Minute):
		l.t.Fatal("it does not end")
	}
	l.setting("copy_rate", "")
}

// deaf forgets what was said.
func (l *limited) deaf() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = nil
}

const deltaIsOver = "limit delta_size is over 64KiB"

// A table that catch_up loads, since it starts over or joined, does not keep passes from the others. So a load that waits
// for them waits for what comes, while the application writes on.
func TestDeltaLimitWhileCatchingUp(t *testing.T) {
	l := deltaLimited(t, "pause")
	l.start(newCopy(l.env), newCatchUp(l.env))
	l.over()
	for _, sql := range []string{
		"ALTER TABLE shop.big ALTER pad TYPE varchar USING pad || '!'",
		"CREATE TABLE shop.later AS SELECT * FROM shop.big; ALTER TABLE shop.later ADD PRIMARY KEY (id)",
	} {
		l.exec(l.source, sql)
		l.must(l.env.Journal.Reopen(t.Context(), "catch_up", true, "it is a test"))
		stop := l.writer()
		l.start(newCatchUp(l.env))
		l.until("a table is loaded", func() bool {
			return l.busy() > 0 && l.number(l.target, "SELECT count(*) FROM pgrunbook.table_state WHERE state = 'loading'") == 1
		})
		l.deaf()
		l.backlog()
		l.until("the limit is over", func() bool { return l.heard(deltaIsOver) })
		l.over()
		stop()
		l.must(l.catchUp())
		l.same("shop.early", "shop.big")
	}
	l.same("shop.later")
}

// What passes leave out until the load has ended goes no sooner, so the load does not wait for it.
func TestDeltaLimitOfWhatPassesLeaveOut(t *testing.T) {
	soonLate(t)
	l := deltaLimited(t, "pause")
	l.start(newCopy(l.env))
	l.copying()
	l.exec(l.source, "ALTER TABLE shop.early ADD COLUMN more int")
	l.backlog()
	l.until("passes leave it out", func() bool { return l.heard(`passes leave "shop"."early" out`) })
	l.until("the limit is over", func() bool { return l.heard(deltaIsOver) })
	time.Sleep(2 * limitsEvery) // it is late by now
	l.over()
	l.start(newCatchUp(l.env))
	l.over()
	l.same("shop.early", "shop.big")
}

const deltaFiles = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pgrunbook'::regnamespace AND relkind = 'r' AND relname ~ '^(delta|image)_'"

// What passes have taken counts no more, though the files stay as large as they were, nor does what comes in between two passes.
func TestDeltaLimitForgetsWhatWasTaken(t *testing.T) {
	l := deltaLimited(t, "pause")
	l.start(newCopy(l.env))
	l.copying()
	stop := l.writer()
	l.backlog()
	l.until("the backlog is there", func() bool { return l.number(l.target, "SELECT count(*) FROM shop.early WHERE id > 999") == 5000 })
	if files := l.number(l.source, deltaFiles); files < 2*64<<10 {
		t.Fatalf("the files have %d bytes: nothing is proved", files)
	}
	time.Sleep(2 * limitsEvery)
	l.over()
	stop()
	l.start(newCatchUp(l.env))
	l.over()
	l.same("shop.early", "shop.big")
}

// Passes that do not keep up hold the load, as long as that is so.
func TestDeltaLimitHoldsALoad(t *testing.T) {
	soonLate(t)
	l := deltaLimited(t, "pause")
	l.start(newCopy(l.env))
	l.copying()
	locker, err := testpg.Connect(t.Context(), l.target)
	l.must(err)
	defer func() { _ = locker.Close(context.Background()) }()
	_, err = locker.PgConn().Exec(t.Context(), "BEGIN; LOCK TABLE shop.early IN EXCLUSIVE MODE").ReadAll()
	l.must(err)
	l.backlog()
	l.until("the load pauses", func() bool { return l.heard(deltaIsOver + ": pause") })
	l.setting("copy_rate", Unlimited)
	l.until("chunks in flight end", l.quiet)
	l.still("the rows copied", l.copied)
	l.must(locker.Close(t.Context()))
	l.over()
	l.start(newCatchUp(l.env))
	l.over()
	l.same("shop.early", "shop.big")
}

// Who is stopped reads what leads on. When passes have taken all, the runbook's own limit stops nobody.
func TestDeltaLimitThatStops(t *testing.T) {
	l := deltaLimited(t, "stop")
	l.start(newCopy(l.env), newCatchUp(l.env))
	l.over()
	l.backlog()
	const hint = "pgrunbook set delta_size="
	err := l.catchUp()
	var e *engine.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, hint) || strings.Contains(e.Hint, "Wait") {
		t.Fatalf("over the limit catch_up ended with %v", err)
	}
	_, value, _ := strings.Cut(e.Hint, hint)
	value, _, _ = strings.Cut(value, " ")
	l.setting("delta_size", value)
	l.must(l.catchUp())
	l.setting("delta_size", "") // as "off" does
	if files := l.number(l.source, deltaFiles); files < 2*64<<10 {
		t.Fatalf("the files have %d bytes: nothing is proved", files)
	}
	l.must(l.catchUp())
	l.same("shop.early", "shop.big")
}
