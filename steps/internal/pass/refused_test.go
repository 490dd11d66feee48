package pass

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A row that a key of To alone refuses stops the pass, which names the key; nothing is forgotten.
func TestTargetWithAKeyOfItsOwn(t *testing.T) {
	p := newPair(t, `CREATE TABLE keyed (id int PRIMARY KEY, v text); CREATE TABLE whole (v text); CREATE TABLE more (v text)`, func(t *scope.Table) {
		if t.Name.Name == "more" {
			t.Identity = scope.AppendOnly
		}
	})
	for _, table := range []string{"keyed", "whole", "more"} {
		rows := "('a'), ('a')"
		if table == "keyed" {
			rows = "(1, 'a'), (2, 'a')"
		}
		p.exec(p.target, "CREATE UNIQUE INDEX mine ON "+table+" (v)")
		p.app("INSERT INTO " + table + " VALUES " + rows)
		for range 2 {
			_, err := p.passer.Exact(p.ctx, Options{})
			var told *engine.Error
			if !errors.As(err, &told) || told.Object != `"public"."`+table+`"` || !strings.Contains(err.Error(), `"public"."mine" on the target refuses rows`) || !strings.Contains(told.Hint, `DROP INDEX "public"."mine"`) {
				t.Fatalf("%s: the pass says %v", table, err)
			}
		}
		p.exec(p.target, "DROP INDEX mine")
		p.synced()
	}
}

// F19: a pass whose statement somebody cancels, on either side, is made again.
func TestF19CanceledPass(t *testing.T) {
	for _, side := range []engine.Side{engine.Source, engine.Target} {
		t.Run(string(side), func(t *testing.T) {
			p := newPair(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
			p.app(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g`)
			holder := p.connect(map[engine.Side]string{engine.Source: p.source, engine.Target: p.target}[side])
			if err := run(p.ctx, holder, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE"); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				for {
					var canceled int
					err := holder.QueryRow(p.ctx, `SELECT count(pg_cancel_backend(pid)) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass
						AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&canceled)
					if err == nil && canceled > 0 {
						err = run(p.ctx, holder, "ROLLBACK")
					}
					if err != nil || canceled > 0 {
						ended <- err
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			_, err := p.passer.Exact(p.ctx, Options{LockTimeout: time.Minute, Patience: time.Minute})
			if err := errors.Join(err, <-ended); err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(p.events, func(e engine.Event) bool { return e.Kind == engine.EventRetry && e.SQLState == "57014" }) {
				t.Errorf("nothing was canceled: %v", p.events)
			}
			p.equal()
		})
	}
}
