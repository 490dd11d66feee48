package pass

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// D19: a pass's COMMIT waits on the target for a standby that does not answer, and its session is lost to us meanwhile. A
// plain look would not see the watermark, and the pass would be made again beside itself. The look-up waits, for a
// watermark that is new as for one that is written anew, and what was committed is forgotten on the source without
// another pass. Where somebody cancels the wait, the client that lost its connection or a person, the COMMIT stands without
// the standby: it is visible, and must not be trusted before a later one was waited for.
func TestD19LookUpWaitsForACommitInFlight(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: target})
	type how int
	const (
		cancelLost how = iota
		cancelled      // by pgx, which lost its connection
		byHand         // and the connection is there
	)
	for _, tt := range []struct {
		name          string
		ddl           string
		before, piece bool // a pass, or piece, came before it
		how           how
	}{
		{"the first pass", plainTable, false, false, cancelLost},
		{"the first pass, cancelled", plainTable, false, false, cancelled},
		{"the first pass, cancelled by hand", plainTable, false, false, byHand},
		{"a later pass", plainTable, true, false, cancelLost},
		{"a later pass, cancelled", plainTable, true, false, cancelled},
		{"a pass with row images", plainTable + "; " + keyless, true, false, cancelLost},
		{"a pass with row images, cancelled", plainTable + "; " + keyless, true, false, cancelled},
		{"the first piece", plainTable, false, true, cancelLost},
		{"the first piece, cancelled", plainTable, false, true, cancelled},
		{"a later piece of a table", plainTable, true, true, cancelLost},
		{"a later piece of a table, cancelled by hand", plainTable, true, true, byHand},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, source)), testpg.NewDB(t, c), tt.ddl)
			proxy := testpg.ListenT(t, c)
			p.to = server(t, "target", proxy.URL(p.target))
			p.passer = p.newPasser()
			if tt.piece {
				p.app(`INSERT INTO t VALUES (-1)`)
				p.synced() // makes the stage
			}
			pass := func(during func() error) error {
				if !tt.piece {
					_, err := p.passer.Exact(p.ctx, Options{InTarget: func(context.Context, pgx.Tx, *pgx.Conn) error { return during() }})
					return err
				}
				if err := during(); err != nil {
					return err
				}
				_, _, _, err := p.passer.piece(p.ctx, p.tables[0], 100)
				return err
			}
			if tt.before {
				p.app(`INSERT INTO t SELECT g, 'a' FROM generate_series(1, 20) g`)
				if err := pass(func() error { return nil }); err != nil {
					t.Fatal(err)
				}
			}
			p.app(`INSERT INTO t SELECT g, 'b' FROM generate_series(11, 30) g ON CONFLICT (id) DO UPDATE SET v = excluded.v; DELETE FROM t WHERE id = 12`)
			if tt.ddl != plainTable {
				p.app(`INSERT INTO k VALUES (1), (1)`)
			}
			waiting := p.deltaRows()
			p.events = nil

			reached, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			go func() {
				ended <- pass(func() error { close(reached); <-goOn; return nil })
			}()
			select {
			case <-reached:
			case err := <-ended:
				t.Fatalf("the pass ended: %v", err)
			}
			answer := testpg.LoseStandbyT(t, c)
			close(goOn)
			pid := fmt.Sprint(testpg.AwaitStandbyT(t, p.target, "query ILIKE 'commit%'", ended))
			// Another session waits for a standby only once the COMMIT waits no more, or it would wait for that one's lock.
			looks := "wait_event = 'SyncRep' AND pid <> " + pid
			if tt.how == cancelLost {
				proxy.LoseCancels(true)
				looks = "wait_event_type = 'Lock' AND query LIKE '%pgrunbook.watermark%'"
			}
			if tt.how == byHand {
				p.one(p.target, "SELECT pg_cancel_backend("+pid+")::text")
			} else if proxy.Reset() == 0 {
				t.Error("no connection was cut")
			}
			p.untilOne(p.target, looks, ended)
			if n := p.one(p.source, "SELECT count(*)::text FROM "+deltaTable(p.tables[tableAt(p, "t")])); n == "0" || waiting == 0 {
				t.Error("keys are forgotten whose COMMIT is not known")
			}
			if lost := proxy.Fired(testpg.FaultCancel); (lost > 0) != (tt.how == cancelLost) {
				t.Errorf("%d cancel requests were lost", lost)
			}
			answer()
			if err := <-ended; err != nil {
				t.Fatalf("the pass failed: %v", err)
			}
			for _, e := range p.events {
				if e.Kind == engine.EventRetry {
					t.Errorf("it was made again: %s", e.Message)
				}
			}
			if n := p.deltaRows(); n != 0 {
				t.Errorf("%d of %d changes are left", n, waiting)
			}
			p.equal()
			p.app(`UPDATE t SET v = 'c' WHERE id = 13`)
			p.synced()
		})
	}
}

// untilOne waits for a session in a state, for as long as the pass goes on.
func (p *pair) untilOne(url, state string, ended chan error) {
	p.t.Helper()
	for p.one(url, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 pass%' AND "+state) != "1" {
		select {
		case err := <-ended:
			p.t.Fatalf("the pass ended before there was one with %s: %v", state, err)
		case <-p.ctx.Done():
			p.t.Fatalf("there is none with %s", state)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func tableAt(p *pair, name string) int {
	for i, t := range p.tables {
		if t.Name.Name == name {
			return i
		}
	}
	p.t.Fatalf("there is no table %s", pg.Name("public", name))
	return -1
}
