package steps

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
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
