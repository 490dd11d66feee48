package steps

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// blocker holds a lock on a table as an application may.
type blocker struct {
	name   string
	named  string // what the product calls it
	writes bool
	begin  func(b *lockBench, url, table string) (end func())
}

var blockerKinds = []blocker{
	{"long reader", "the application", false, func(b *lockBench, url, table string) func() {
		return b.open(url, "EXPLAIN SELECT count(*) FROM "+table) // locks as the query itself, and a materialized view without rows has none to give
	}},
	{"long writer", "the application", true, func(b *lockBench, url, table string) func() {
		conn := b.connect(url)
		b.run(conn, "BEGIN", "UPDATE "+table+" SET id = id WHERE id = 1")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = conn.Exec(context.Background(), "SELECT pg_sleep(600)") // ends with its connection
		}()
		return func() {
			_ = conn.PgConn().CancelRequest(context.Background())
			<-done
			_ = conn.Close(context.Background())
		}
	}},
	{"idle in transaction", "idle in transaction", true, func(b *lockBench, url, table string) func() {
		return b.open(url, "UPDATE "+table+" SET id = id WHERE id = 1")
	}},
	{"prepared transaction", "prepared transaction", true, func(b *lockBench, url, table string) func() {
		conn := b.connect(url)
		b.run(conn, "BEGIN", "UPDATE "+table+" SET id = id WHERE id = 1", "PREPARE TRANSACTION 'forgotten'")
		return func() { b.run(conn, "ROLLBACK PREPARED 'forgotten'"); _ = conn.Close(context.Background()) }
	}},
}

// connect opens a session of the application; the mark lets it pass a closed gate.
func (b *lockBench) connect(url string) *pgx.Conn {
	b.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	b.must(err)
	b.run(conn, "SET application_name = 'the application'", "SELECT set_config('pgrunbook.mark', '"+b.env.Run.Mark+"', false)")
	return conn
}

func (b *lockBench) run(conn *pgx.Conn, statements ...string) {
	b.t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			b.t.Fatalf("%s: %v", sql, err)
		}
	}
}

func (b *lockBench) open(url, sql string) (end func()) {
	conn := b.connect(url)
	b.run(conn, "BEGIN", sql)
	return func() { _ = conn.Close(context.Background()) }
}

// appProbe is an application's reader and writer; longest is what one statement took at most.
type appProbe struct {
	stop    chan struct{}
	once    sync.Once
	wait    sync.WaitGroup
	done    [2]atomic.Int64
	longest atomic.Int64
}

func (b *lockBench) probe(url, table string) *appProbe {
	p := &appProbe{stop: make(chan struct{})}
	for i, sql := range []string{"SELECT count(*) FROM " + table + " WHERE id = 7", "UPDATE " + table + " SET id = id WHERE id = 7"} {
		conn := b.connect(url)
		p.wait.Go(func() {
			defer func() { _ = conn.Close(context.Background()) }()
			for {
				select {
				case <-p.stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				start := time.Now()
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					b.t.Errorf("the application's %s: %v", sql, err)
					return
				}
				p.done[i].Add(1)
				for took := time.Since(start).Nanoseconds(); ; {
					old := p.longest.Load()
					if took <= old || p.longest.CompareAndSwap(old, took) {
						break
					}
				}
			}
		})
	}
	return p
}

func (p *appProbe) end() time.Duration {
	p.once.Do(func() { close(p.stop) })
	p.wait.Wait()
	return time.Duration(p.longest.Load()).Round(time.Millisecond)
}

func (p *appProbe) counts() [2]int64 { return [2]int64{p.done[0].Load(), p.done[1].Load()} }
