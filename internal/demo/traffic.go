package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// statements touch every kind of table in every way: plain writes, a key that changes, deletes
// that cascade, a partition that a row moves to, a sequence of no column, work rolled back.
var statements = []string{
	"UPDATE public.pgbench_accounts SET abalance = abalance + $1 WHERE aid = 1 + $1 % 100000",
	"UPDATE public.pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 1 + $1 % 10",
	"INSERT INTO public.pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, $1, 1, now())",
	"UPDATE shop.product SET net = ($1::int % 1000) / 10.0, tags = tags || 'x' WHERE id = 1 + $1 % 1000 AND cardinality(tags) < 20",
	"INSERT INTO shop.product (title, net) VALUES ('new ' || $1::int, 1)",
	"INSERT INTO shop.invoice_item (invoice, line, product, amount) VALUES ($1, 1, 1 + $1 % 1000, 2) ON CONFLICT (invoice, line) DO UPDATE SET amount = excluded.amount + 1",
	"UPDATE shop.invoice_item SET line = line + 100, state = 'sent' WHERE invoice = $1 % 10000 AND line = 1",
	"DELETE FROM shop.invoice_item WHERE invoice = $1 % 10000 AND line = 2",
	"INSERT INTO shop.customer (email, profile) VALUES ('n' || $1::int || '@example.com', '{\"new\": true}') ON CONFLICT (email) DO UPDATE SET profile = shop.customer.profile || '{\"seen\": true}'",
	"DELETE FROM shop.customer WHERE email = 'c' || (1 + $1::int % 5000) || '@example.com'",
	"UPDATE shop.visit SET day = day + 200 WHERE id = $1 % 60000 AND day < '2025-08-01'",
	"INSERT INTO shop.visit VALUES (date '2026-01-01' + $1::int % 300, 1000000 + nextval('shop.ticket'), 'page') ON CONFLICT DO NOTHING",
	"INSERT INTO shop.job_log (text) VALUES ('tick ' || $1::int)",
	"DELETE FROM shop.job_log WHERE ctid = (SELECT min(ctid) FROM shop.job_log)",
}

// traffic writes until ctx ends; a client that is refused or cut off goes on at the next server.
func traffic(ctx, hard context.Context, urls []string, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 1))
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(hard)
		}
	}()
	server := 0
	for ctx.Err() == nil {
		if conn == nil || conn.IsClosed() {
			conn = open(hard, urls[server%len(urls)])
			if conn == nil {
				server++
				time.Sleep(20 * time.Millisecond)
				continue
			}
		}
		if err := write(hard, conn, random); err != nil {
			_ = conn.Close(hard)
			conn = nil
			server++
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
	}
	return nil
}

func open(ctx context.Context, url string) *pgx.Conn {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil
	}
	return conn
}

// write runs a few statements in one transaction. Constraint violations, deadlocks and the like are
// the application's own business: the transaction is rolled back and the next one begins.
func write(ctx context.Context, conn *pgx.Conn, random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	for range 1 + random.IntN(3) {
		sql, args := statements[random.IntN(len(statements))], []any{random.IntN(1_000_000)}
		if !strings.Contains(sql, "$1") {
			args = nil
		}
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			if state := stateOf(err); state == "" || state == "25006" || state[:2] == "57" || state[:2] == "08" {
				return err // refused or cut off: on to the other server
			}
			return nil
		}
	}
	if random.IntN(10) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

func initPgbench(ctx context.Context, url string, scale int) error {
	path, err := testpg.PgbenchPath(ctx)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "-i", "-q", "-s", fmt.Sprint(scale), url).CombinedOutput()
	if err != nil {
		return fmt.Errorf("filling pgbench's tables: %w: %s", err, out)
	}
	return nil
}

func script(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

func stateOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
