package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/pooler"
)

// TestPoolersStayOnRecord: an entry that could not be pointed back is not forgotten because the clients
// were let go, neither by who comes next nor by the next attempt of the same process.
func TestPoolersStayOnRecord(t *testing.T) {
	source, target := testpg.Pair(t)
	bouncer := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"bank": source}})
	place, err := testpg.BouncerEntry("", target)
	if err != nil {
		t.Fatal(err)
	}
	group, err := pooler.NewGroup([]pooler.Config{{
		Name: "front", Admin: bouncer.Console(testpg.BouncerAdmin), Database: "bank", ConfigFile: bouncer.DatabasesFile,
		Connect: strings.TrimPrefix(place, " = "), Timeout: 5 * time.Second, MaxBlock: time.Second,
	}})
	if err != nil {
		t.Fatal(err)
	}
	memory, ctx := journal.NewMemory(), t.Context()
	if _, err := memory.Begin(ctx, newFreeze(&Env{}, nil)); err != nil {
		t.Fatal(err)
	}
	p := &poolers{group: group, cp: memory.Checkpoint("freeze", engine.SinkFunc(func(engine.Event) {})), cursor: &freezeCursor{}}
	defer p.close()
	recorded := func() freezeCursor {
		var c freezeCursor
		if _, err := p.cp.Load(ctx, &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	leads := func(to string) {
		t.Helper()
		if text := read(t, bouncer.DatabasesFile); !strings.Contains(text, "dbname="+databaseOf(t, to)) {
			t.Errorf("the entry leads elsewhere than to %s:\n%s", to, text)
		}
	}
	for _, do := range []func() error{func() error { return p.pause(ctx) }, func() error { return p.repoint(ctx) }} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	leads(target)
	whole := read(t, bouncer.DatabasesFile)
	write(t, bouncer.DatabasesFile, "[databases]\nother = host=127.0.0.1\n") // somebody is at work on it
	if err := p.settle(ctx, false); err == nil {
		t.Fatal("the entry was pointed back although it is not there")
	}
	if c := recorded(); !c.Paused || len(c.Changes) != 1 {
		t.Fatalf("the record forgets what could not be taken back: %+v", c)
	}
	if err := p.pause(ctx); err == nil {
		t.Error("another attempt began with an entry that leads to the closed side")
	}
	write(t, bouncer.DatabasesFile, whole)
	if err := p.pause(ctx); err != nil {
		t.Fatal(err)
	}
	leads(source)
	if c := recorded(); c.Changes[0].From == c.Changes[0].To {
		t.Errorf("the change of the next attempt leads nowhere: %+v", c.Changes)
	}
	if err := p.settle(ctx, false); err != nil || recorded().Paused {
		t.Errorf("letting go: %v, %+v", err, recorded())
	}
}

// TestPoolersAstray: a switch step fails, and the entry that was pointed to the target cannot be pointed
// back. Once it can, a moment later, the next attempt is made; where it cannot, the run ends there, since
// clients are shut out, and says what to do. The same command goes on from that.
func TestPoolersAstray(t *testing.T) {
	source, target := testpg.Pair(t)
	bouncer := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"bank": source}})
	place, err := testpg.BouncerEntry("", target)
	if err != nil {
		t.Fatal(err)
	}
	r := newRigOn(t, source, target, shopSetup, fmt.Sprintf(`cutover {
  max_write_block = "60s"
  attempts        = 3
  retry_every     = "100ms"
  pooler "pgbouncer" "front" {
    admin       = %q
    database    = "bank"
    config_file = %q
    connect     = %q
  }
}`, bouncer.Console(testpg.BouncerAdmin), bouncer.DatabasesFile, strings.TrimPrefix(place, " = ")))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	leads := func(to string) {
		t.Helper()
		if got := databaseOf(t, bouncer.URL("bank", "postgres")); got != databaseOf(t, to) {
			t.Errorf("clients get to %s, want %s", got, databaseOf(t, to))
		}
	}
	attempts, whole := 0, ""
	spoil := func(context.Context) error {
		attempts++
		whole = read(t, bouncer.DatabasesFile)
		write(t, bouncer.DatabasesFile, "[databases]\nother = host=127.0.0.1\n") // somebody is at work on it
		return errors.New("no answer")
	}
	mends, staged := true, ""
	step := newFreeze(r.env, []freeze.SwitchStep{{Name: "dns", Timeout: 10 * time.Second, Do: spoil, Undo: func(context.Context) error { return nil }}})
	r.onEvent = func(e engine.Event) {
		if staged == "" && e.Mark == markPause { // its clients wait for nothing that could have been made before
			staged = query(t, r.target, `SELECT count(*)::text FROM pg_class WHERE relpersistence = 't' AND relname ~ '^(stage|image)_\d+$'`)
		}
		if mends && strings.Contains(e.Message, "undoing repoint the poolers failed") {
			mends = false
			write(t, bouncer.DatabasesFile, whole)
		}
	}
	err = r.walk(t.Context(), step)
	if staged < "3" {
		t.Errorf("%q stages were there when the pooler was paused", staged)
	}
	if attempts != 2 || mends {
		t.Errorf("%d attempts were made, want one more once the entry was whole, and none after it", attempts)
	}
	if err == nil || engine.ClassOf(err) != engine.ClassFailed || !strings.Contains(err.Error(), "pointing the poolers back to the source") || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("the freeze ended with %v", err)
	}
	for _, part := range []string{"The source takes writes, and clients of these poolers do not get there.", "In " + bouncer.DatabasesFile + " make it bank = ", "Then run the same command again."} {
		if !strings.Contains(engine.HintOf(err), part) {
			t.Errorf("the hint lacks %q: %s", part, engine.HintOf(err))
		}
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'the source takes writes' WHERE id = 1")

	write(t, bouncer.DatabasesFile, whole)
	step.(*freezeStep).repoint[0].Do = func(context.Context) error { return nil }
	r.must(r.walk(t.Context(), step))
	leads(target)
	r.same("shop.customer")
}

// TestUndoneInReverse: what a dead process had repointed is taken back in reverse order, and clients that
// wait in a pooler go on when all of it is.
func TestUndoneInReverse(t *testing.T) {
	source, target := testpg.Pair(t)
	bouncer := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"bank": source}})
	place, err := testpg.BouncerEntry("", target)
	if err != nil {
		t.Fatal(err)
	}
	says := filepath.Join(t.TempDir(), "says")
	say := func(word string) string {
		return fmt.Sprintf("\"/bin/sh\", \"-c\", \"echo %s `grep -o dbname=[a-z0-9_]* %s` >> %s\"", word, bouncer.DatabasesFile, says)
	}
	text := strings.Replace(dnsSwitch(say("there"), say("back")), "cutover {", fmt.Sprintf("cutover {\n pooler \"pgbouncer\" \"front\" {\n admin = %q\n database = \"bank\"\n config_file = %q\n connect = %q\n timeout = \"5s\"\n }",
		bouncer.Console(testpg.BouncerAdmin), bouncer.DatabasesFile, strings.TrimPrefix(place, " = ")), 1)
	r := newRigOn(t, source, target, shopSetup, text)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env), newReverse(r.env)))
	repointed := func(step engine.Step, back bool) *poolers {
		t.Helper()
		_, err := r.env.Journal.Begin(t.Context(), step)
		r.must(err)
		p, err := newPoolers(t.Context(), r.env, r.env.Journal.Checkpoint(step.ID(), r.env.Sink), back, &freezeCursor{})
		r.must(err)
		t.Cleanup(p.close)
		r.must(p.pause(t.Context()))
		r.must(p.repoint(t.Context()))
		return p
	}
	undone := func(p *poolers, want, leads string) {
		t.Helper()
		p.cursor.Begun = 1
		r.must(p.cp.Save(t.Context(), nil, p.cursor))
		r.env.Journal.Close(t.Context())
		write(t, says, "")
		r.open()
		if got := read(t, says); got != want+"\n" {
			t.Errorf("the step was undone with %q, want %q", got, want)
		}
		if text := read(t, bouncer.DatabasesFile); !strings.Contains(text, "dbname="+databaseOf(t, leads)) {
			t.Errorf("the pooler does not lead back:\n%s", text)
		}
	}
	// A cutover's poolers were the first: they lead to the target still. A rollback's were the last.
	there := databaseOf(t, target)
	undone(repointed(newFreeze(r.env, nil), false), "back dbname="+there, source)
	r.must(repointed(newFreeze(r.env, nil), false).resume(t.Context()))
	r.flipped()
	undone(repointed(newRollback(r.env, nil), true), "there dbname="+there, target)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func databaseOf(t *testing.T, url string) string {
	t.Helper()
	return query(t, url, "SELECT current_database()")
}
