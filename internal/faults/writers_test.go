package faults_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// statements change every table in every way that a pass has to get right. $1 is random.
var statements = []string{
	"INSERT INTO app.item (name, net) VALUES (' new ' || $1::int, 1)",
	"UPDATE app.item SET net = $1::int % 90 WHERE id = 1 + $1 % 1500",
	"UPDATE app.item SET name = 'renamed ' || id WHERE id % 97 = $1 % 97",
	"DELETE FROM app.item WHERE id = 1 + $1 % 1500",
	"INSERT INTO app.part VALUES (1 + $1 % 1500, 10000 + $1, 'late') ON CONFLICT (item, no) DO UPDATE SET note = 'twice'",
	"UPDATE app.part SET no = no + 20000 WHERE item = 1 + $1 % 1500 AND no < 10000",
	"DELETE FROM app.slot WHERE id = 1 + $1 % 200",
	"INSERT INTO app.slot VALUES (1 + $1 % 200, 1000 + $1 % 200) ON CONFLICT DO NOTHING",
	"INSERT INTO app.label VALUES (CASE WHEN $1::int % 2 = 0 THEN 'label-' ELSE 'LABEL-' END || $1::int % 400, 1) ON CONFLICT (tag) DO UPDATE SET n = label.n + 1",
	"UPDATE app.label SET tag = upper(tag::text)::citext WHERE n % 50 = $1 % 50",
	"UPDATE app.amount SET k = k + 0.50 WHERE n = 1 + $1 % 400",
	"UPDATE app.amount SET k = trunc(k) + 0.00 WHERE n = 1 + $1 % 400",
	"UPDATE app.event SET day = day + 100 WHERE id = 1 + $1 % 2000 AND day < '2026-06-01'",
	"INSERT INTO app.event VALUES (date '2026-01-01' + $1::int % 250, 100000 + $1, 'e') ON CONFLICT DO NOTHING",
	"DELETE FROM app.event WHERE id = 1 + $1 % 2000",
	"INSERT INTO app.scratch (text) SELECT 'again' FROM generate_series(1, 20)",
	"INSERT INTO app.jobs (text) VALUES ('job ' || $1::int % 7)",
	"DELETE FROM app.jobs WHERE ctid = (SELECT min(ctid) FROM app.jobs)",
	"INSERT INTO app.trail (text) VALUES ('seen ' || $1::int % 9)",
	"INSERT INTO app.bag VALUES ($1::int % 20, 'b')",
	"UPDATE app.bag SET b = b || 'x' WHERE ctid = (SELECT min(ctid) FROM app.bag WHERE a = $1 % 20 AND length(b) < 9)",
	"DELETE FROM app.bag WHERE ctid = (SELECT min(ctid) FROM app.bag WHERE a = $1 % 20)",
	"SELECT nextval('app.ticket') WHERE $1::int >= 0",
}

// The unique values of two rows are exchanged in one transaction.
const (
	swapAside = "UPDATE app.slot SET pos = pos + 1000000 WHERE id = $1"
	swapOne   = "UPDATE app.slot SET pos = (SELECT pos - 1000000 FROM app.slot WHERE id = $1) WHERE id = $2"
	swapOther = "UPDATE app.slot SET pos = $2 WHERE id = $1"
)

// client is one application that writes whatever comes, at the first server that lets it.
type client struct {
	urls   []string
	random *rand.Rand
	conn   *pgx.Conn
	at     int
	// left is the side that the next flip leaves. TRUNCATE happens only there: on the new side it
	// would empty the table also for the older snapshot that the oracle reads (PostgreSQL docs, 13.6).
	left atomic.Int32
	// wrong is a statement that no server could have run: what it should test is not tested.
	wrong error
	still atomic.Bool // it begins no transaction
	rests atomic.Bool // nor is it in one
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		resting := c.still.Load()
		c.rests.Store(resting)
		if resting {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := c.once(context.WithoutCancel(ctx)); err != nil {
			state := sqlState(err)
			if state == "" && c.conn != nil && !c.conn.IsClosed() && !errors.Is(err, pgx.ErrNoRows) || strings.HasPrefix(state, "42") && state != "42P01" {
				c.wrong = err
			}
			if c.conn == nil || c.conn.IsClosed() || state == "25006" || strings.HasPrefix(state, "57") {
				c.drop()
				c.at = (c.at + 1) % len(c.urls)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(30+c.random.IntN(40)) * time.Millisecond):
		}
	}
	c.drop()
}

func (c *client) drop() {
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.conn.Close(ctx) // a broken connection's error is known already
		c.conn = nil
	}
}

// once runs one transaction: some statements, a savepoint that is rolled back, now and then a swap,
// a TRUNCATE, or an end by ROLLBACK.
func (c *client) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if c.conn == nil || c.conn.IsClosed() {
		conn, err := pgx.Connect(ctx, c.urls[c.at])
		if err != nil {
			return err
		}
		c.conn = conn
	}
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after COMMIT it does nothing
	switch kind := c.random.IntN(12); {
	case kind == 0:
		err = c.swap(ctx, tx)
	case kind == 1 && c.at == int(c.left.Load()):
		_, err = tx.Exec(ctx, "TRUNCATE app.scratch; INSERT INTO app.scratch (text) VALUES ('first')")
	default:
		err = c.some(ctx, tx)
	}
	if err != nil {
		return err
	}
	if c.random.IntN(10) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

func (c *client) some(ctx context.Context, tx pgx.Tx) error {
	for range 1 + c.random.IntN(3) {
		if err := c.statement(ctx, tx); err != nil {
			return err
		}
	}
	if c.random.IntN(4) != 0 {
		return nil
	}
	nested, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := c.statement(ctx, nested); err != nil {
		return errors.Join(err, nested.Rollback(ctx))
	}
	return nested.Rollback(ctx)
}

func (c *client) statement(ctx context.Context, tx pgx.Tx) error {
	sql := statements[c.random.IntN(len(statements))]
	var args []any
	if strings.Contains(sql, "$1") {
		args = append(args, c.random.IntN(1_000_000))
	}
	_, err := tx.Exec(ctx, sql, args...)
	return err
}

func (c *client) swap(ctx context.Context, tx pgx.Tx) error {
	a, b := 1+c.random.IntN(200), 1+c.random.IntN(200)
	if a == b {
		return nil
	}
	var pos int
	if err := tx.QueryRow(ctx, "SELECT pos FROM app.slot WHERE id = $1 FOR UPDATE", b).Scan(&pos); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, swapAside, a); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, swapOne, a, b); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, swapOther, a, pos)
	return err
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
