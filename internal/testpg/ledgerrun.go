package testpg

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Run lets clients write until ctx ends, then lets their transactions in flight
// finish. All begin at the first of urls; a client that is refused (read-only,
// server shutting down or starting) or loses its connection goes on at the next
// one, round and round. It may be called again; the counts add up.
func (l *Ledger) Run(ctx context.Context, urls []string, clients int) error {
	configs := make([]*pgx.ConnConfig, len(urls))
	for i, url := range urls {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			return fmt.Errorf("reading a server's URL: %w", err)
		}
		config.RuntimeParams["application_name"] = l.opts.AppName
		config.ConnectTimeout = 2 * time.Second
		config.DefaultQueryExecMode = pgx.QueryExecModeExec // no named statements: works behind a pooler
		configs[i] = config
	}
	if len(configs) == 0 || clients < 1 {
		return errors.New("running the ledger: needs a server and a client")
	}
	var wg sync.WaitGroup
	for range clients {
		w := &writer{l: l, client: l.newClient(), servers: configs}
		wg.Go(func() { w.run(ctx) })
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gapUntil(time.Now()) // writes that never came back are a gap too
	l.lastAck = time.Time{}
	return nil
}

// writer is one client.
type writer struct {
	l       *Ledger
	client  int
	servers []*pgx.ConnConfig
	server  int // position of the one in use
	conn    *pgx.Conn
}

func (w *writer) run(ctx context.Context) {
	const least, most = 2 * time.Millisecond, 50 * time.Millisecond
	wait := least
	for ctx.Err() == nil {
		pause := w.l.opts.Pause
		if err := w.once(ctx); err != nil {
			w.note(ctx, err)
			pause = max(pause, wait)
			wait = min(2*wait, most)
		} else {
			wait = least
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
	w.drop()
}

// once connects if it must and does one transaction.
func (w *writer) once(ctx context.Context) error {
	if w.conn == nil {
		conn, err := pgx.ConnectConfig(ctx, w.servers[w.server])
		if err != nil {
			return err
		}
		w.conn = conn
	}
	// Not ctx itself: the end of Run would cut transactions off and leave their outcome unknown.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.l.opts.TxTimeout)
	defer cancel()
	seq := w.l.next(w.client)
	o, err := w.transaction(ctx, seq)
	w.l.settle(w.client, seq, w.server, o)
	return err
}

// transaction does the work and says what is known of its commit.
func (w *writer) transaction(ctx context.Context, seq int) (outcome, error) {
	payer, payee := 1+rand.IntN(w.l.opts.Accounts), 1+rand.IntN(w.l.opts.Accounts)
	amount := 1 + rand.IntN(100)
	low, lowBy, high, highBy := payer, -amount, payee, amount
	if payee < payer { // accounts are locked in one order, so that clients do not deadlock
		low, lowBy, high, highBy = payee, amount, payer, -amount
	}
	update := "UPDATE " + w.l.table("account") + " SET balance = balance + $2 WHERE id = $1"
	steps := []struct {
		sql  string
		args []any
	}{
		{"BEGIN", nil},
		{update, []any{low, lowBy}},
		{update, []any{high, highBy}},
		{"INSERT INTO " + w.l.table("entry") + " (client, seq, payer, payee, amount) VALUES ($1, $2, $3, $4, $5)", []any{w.l.clientName(w.client), seq, payer, payee, amount}},
	}
	for _, s := range steps {
		if _, err := w.conn.Exec(ctx, s.sql, s.args...); err != nil {
			return refused, errors.Join(err, w.rollback(ctx)) // no COMMIT was sent
		}
	}
	if n := w.l.opts.RollBackEvery; n > 0 && seq%n == n-1 {
		return refused, w.rollback(ctx)
	}
	tag, err := w.conn.Exec(ctx, "COMMIT")
	switch {
	case err == nil && tag.String() == "COMMIT":
		return acknowledged, nil
	case err == nil:
		return refused, fmt.Errorf("COMMIT was answered by %s", tag)
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" {
		return refused, errors.Join(err, w.rollback(ctx))
	}
	return unknown, err // also a FATAL one: it may come after the commit
}

func (w *writer) rollback(ctx context.Context) error {
	if w.conn.IsClosed() {
		return nil
	}
	_, err := w.conn.Exec(ctx, "ROLLBACK")
	return err
}

// note counts an error and decides where to go on.
func (w *writer) note(ctx context.Context, err error) {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return
	}
	kind := "connection"
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		kind = pgErr.Code
	}
	w.l.mu.Lock()
	w.l.stats.Errors[kind]++
	w.l.mu.Unlock()
	switch {
	case kind == "25006", kind == "57P01", kind == "57P02", kind == "57P03", kind == "connection", kind == "42P01", // 42P01: an abort took the tables away
		w.conn == nil, w.conn.IsClosed():
		w.drop()
		w.server = (w.server + 1) % len(w.servers)
	}
}

func (w *writer) drop() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // a broken connection's error is known already
	w.conn = nil
}
