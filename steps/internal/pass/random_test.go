package pass

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// randomTables have what makes passes hard: a second unique key, a tree, a key of two columns,
// cascades, no key at all.
const randomTables = `
CREATE TABLE u (id int PRIMARY KEY, mail text UNIQUE, v text);
CREATE TABLE two (a text, b int, v text, PRIMARY KEY (a, b));
CREATE TABLE child (id int PRIMARY KEY, u int REFERENCES u ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (MINVALUE) TO (50);
CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (50) TO (MAXVALUE);
CREATE TABLE bare (a int, v text)`

// statement is one random piece of an application's transaction. Ids are few, so that writers meet.
func statement(r *rand.Rand) string {
	id, other := r.IntN(60), r.IntN(100)
	all := []string{
		fmt.Sprintf("INSERT INTO u VALUES (%d, 'm%d', 'i') ON CONFLICT DO NOTHING", id, r.IntN(80)),
		fmt.Sprintf("INSERT INTO u VALUES (%d, 'm%d', 'c') ON CONFLICT (id) DO UPDATE SET v = u.v || '+'", id, id+1000),
		fmt.Sprintf("UPDATE u SET mail = mail || 'x' WHERE id = %d", id),
		fmt.Sprintf("UPDATE u SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM u WHERE id = %d)", other, id, other),
		fmt.Sprintf("DELETE FROM u WHERE id = %d", id),
		fmt.Sprintf("INSERT INTO child SELECT %d, id FROM u WHERE id = %d ON CONFLICT DO NOTHING", id, id),
		fmt.Sprintf("INSERT INTO two VALUES ('%c', %d, 'x') ON CONFLICT (a, b) DO UPDATE SET v = two.v || 'y'", 'a'+rune(r.IntN(4)), r.IntN(20)),
		fmt.Sprintf("UPDATE two SET b = b + 100 WHERE a = '%c' AND b < 10", 'a'+rune(r.IntN(4))),
		fmt.Sprintf("DELETE FROM two WHERE b > %d", 80+r.IntN(100)),
		fmt.Sprintf("INSERT INTO tree VALUES (%d, 't') ON CONFLICT (id) DO UPDATE SET v = tree.v || 't'", other),
		fmt.Sprintf("UPDATE tree SET id = id + 50 WHERE id = %d AND NOT EXISTS (SELECT FROM tree WHERE id = %d)", id, id+50),
		fmt.Sprintf("DELETE FROM tree_2 WHERE id = %d", other),
		fmt.Sprintf("INSERT INTO bare SELECT %d, 'b' FROM generate_series(1, %d)", r.IntN(5), 1+r.IntN(3)),
		fmt.Sprintf("DELETE FROM bare WHERE ctid IN (SELECT ctid FROM bare WHERE a = %d LIMIT 1)", r.IntN(5)),
		fmt.Sprintf("UPDATE bare SET v = v || 'u' WHERE a = %d AND length(v) < 4", r.IntN(5)),
		"SAVEPOINT s", "ROLLBACK TO SAVEPOINT s", "SELECT pg_sleep(0.005)",
	}
	if r.IntN(200) == 0 {
		return []string{"TRUNCATE two", "TRUNCATE tree_1", "TRUNCATE tree", "TRUNCATE u, child", "TRUNCATE bare"}[r.IntN(5)]
	}
	return all[r.IntN(len(all))]
}

// write runs random transactions until ctx ends. Errors are the application's own affair.
func write(ctx context.Context, url string, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 7))
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	conf.RuntimeParams["application_name"] = "writer"
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := run(ctx, conn, "SET deadlock_timeout = '30ms'; SET lock_timeout = '300ms'"); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if conn.IsClosed() {
			if conn, err = pgx.ConnectConfig(ctx, conf); err != nil {
				return ctx.Err()
			}
		}
		sql := []string{"BEGIN"}
		for range 1 + r.IntN(6) {
			sql = append(sql, statement(r))
		}
		end := "COMMIT"
		if r.IntN(6) == 0 {
			end = "ROLLBACK"
		}
		if run(ctx, conn, strings.Join(append(sql, end), "; ")) != nil && !conn.IsClosed() {
			_ = run(ctx, conn, "ROLLBACK")
		}
	}
	return nil
}

// errEnough ends writers before their time.
var errEnough = errors.New("enough")

// writers runs n writers for a while beside f.
func (p *pair) writers(n int, seed uint64, during time.Duration, f func(ctx context.Context) error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, during)
	defer cancel()
	g, gctx := errgroup.WithContext(p.ctx)
	for i := range n {
		g.Go(func() error {
			if err := write(ctx, p.source, seed+uint64(i)); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		for ctx.Err() == nil {
			err := f(gctx)
			if errors.Is(err, errEnough) {
				cancel()
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		p.t.Fatal(err)
	}
	// A transaction that its client no longer waits for may only come to the server now.
	for p.one(p.source, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'writer'") != "0" {
		time.Sleep(5 * time.Millisecond)
	}
}

func TestRandomWriters(t *testing.T) {
	for seed := range uint64(3) {
		p := newPair(t, randomTables)
		r := rand.New(rand.NewPCG(seed, 1))
		var passes, exactOnes int
		p.writers(3, seed*10, 2*time.Second, func(ctx context.Context) error {
			passes++
			if r.IntN(3) == 0 {
				exactOnes++
				_, err := p.passer.Exact(ctx, Options{Patience: 20 * time.Second})
				return err
			}
			tables := p.passer.following()
			for id, tbl := range tables {
				w := New(p.passer.cfg)
				err := w.table(ctx, tbl, 100, DrainOptions{PieceRows: int64(20 + r.IntN(150)), Patience: 20 * time.Second}, func(int64) {})
				_ = w.Close(ctx)
				if err != nil {
					return fmt.Errorf("table %d: %w", id, err)
				}
			}
			return nil
		})
		p.synced()
		t.Logf("seed %d: %d rounds, %d of them exact, %s rows in u", seed, passes, exactOnes, p.one(p.target, "SELECT count(*)::text FROM u"))
		if t.Failed() {
			return
		}
	}
}

// TestEveryExactPassIsItsSnapshot compares the target after each pass with the snapshot that the
// pass was made from, while writers go on.
func TestEveryExactPassIsItsSnapshot(t *testing.T) {
	p := newPair(t, randomTables)
	sum := `SELECT coalesce(sum(hashtextextended(x::text, 0)), 0)::text FROM (SELECT u::text AS x FROM u UNION ALL SELECT two::text FROM two UNION ALL SELECT child::text FROM child
		UNION ALL SELECT tree::text FROM tree UNION ALL SELECT bare::text FROM bare) s`
	compared := 0
	compare := func(ctx context.Context) error {
		res, err := p.passer.Exact(ctx, Options{Patience: 20 * time.Second, Snapshot: true})
		if err != nil {
			return err
		}
		defer res.Release()
		conn, err := pgx.Connect(ctx, p.source)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		if err := run(ctx, conn, "SET lock_timeout = '1s'; BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+res.ExportedSnapshot+"'"); err != nil {
			return err
		}
		// A TRUNCATE after the snapshot empties what the snapshot sees: no sum to compare then.
		truncations := `SELECT (SELECT count(*) FROM pgrunbook.truncated) + (SELECT count(*) FROM pgrunbook.image_1 WHERE op = 't')`
		var source string
		if err := conn.QueryRow(ctx, sum).Scan(&source); err != nil {
			return err
		}
		if p.one(p.source, "SELECT ("+truncations+")::text") != "0" {
			return nil
		}
		compared++
		if target := p.one(p.target, sum); target != source {
			return fmt.Errorf("the target differs from the snapshot of pass %s", res.PassID)
		}
		return nil
	}
	for range 20 { // on a slow machine, each look of a round may have met a TRUNCATE
		if p.writers(3, 77, 3*time.Second, compare); compared > 0 {
			break
		}
	}
	if compared == 0 {
		t.Error("no pass was compared")
	}
	p.synced()
}

// TestKilledSessions ends our sessions on both sides at random while passes are made.
func TestKilledSessions(t *testing.T) {
	p := newPair(t, randomTables)
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var killed, passes atomic.Int64
	go func() {
		r := rand.New(rand.NewPCG(5, 5))
		for ctx.Err() == nil {
			url := []string{p.source, p.target}[r.IntN(2)]
			if conn, err := pgx.Connect(ctx, url); err == nil {
				var one int64
				_ = conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
					WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 pass%' ORDER BY random() LIMIT 1) s`).Scan(&one)
				killed.Add(one)
				_ = conn.Close(ctx)
			}
			// The next one comes anywhere in a pass, but not before one got through.
			for before := passes.Load(); passes.Load() == before && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Duration(r.IntN(80)) * time.Millisecond)
		}
	}()
	p.writers(2, 500, time.Minute, func(ctx context.Context) error {
		if killed.Load() >= 12 {
			return errEnough
		}
		_, err := p.passer.Exact(ctx, Options{Patience: 30 * time.Second})
		passes.Add(1)
		return err
	})
	cancel()
	if n := killed.Load(); n < 12 {
		t.Errorf("only %d sessions were ended", n)
	}
	p.synced()
}
