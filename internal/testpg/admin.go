package testpg

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// admin is a session that a cluster keeps for making and dropping databases: tests do that by the
// hundred, and a new session costs more than the statement.
type admin struct {
	mu   sync.Mutex
	conn *pgx.Conn
}

// do runs one statement as superuser in database postgres.
func (a *admin) do(ctx context.Context, c *Cluster, use func(*pgx.Conn) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil && a.conn.Ping(ctx) != nil { // the server was restarted
		_ = a.conn.Close(ctx)
		a.conn = nil
	}
	if a.conn == nil {
		conn, err := pgx.Connect(ctx, c.ConnString())
		if err != nil {
			return fmt.Errorf("connecting to postgres: %w", err)
		}
		a.conn = conn
	}
	return use(a.conn)
}

func (c *Cluster) adminExec(ctx context.Context, statements ...string) error {
	return c.admin.do(ctx, c, func(conn *pgx.Conn) error {
		for _, s := range statements {
			if _, err := conn.Exec(ctx, s); err != nil {
				return fmt.Errorf("running %q: %w", s, err)
			}
		}
		return nil
	})
}

// createDB makes an empty database. Copying the template's files costs a third of what copying its
// pages through the log does; before 15 there is no other way.
func (c *Cluster) createDB(ctx context.Context, name string) error {
	sql := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	if c.Major >= 15 {
		sql += " STRATEGY file_copy"
	}
	return c.adminExec(ctx, sql)
}

// DropDB ends the sessions of a database, rolls back its prepared transactions
// and drops it.
func (c *Cluster) DropDB(ctx context.Context, name string) error {
	if err := c.rollBackPrepared(ctx, name); err != nil {
		return err
	}
	ident := pgx.Identifier{name}.Sanitize()
	if c.Major >= 13 {
		return c.adminExec(ctx, "DROP DATABASE "+ident+" WITH (FORCE)")
	}
	return c.adminExec(ctx,
		"ALTER DATABASE "+ident+" ALLOW_CONNECTIONS false",
		"SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = '"+name+"'",
		"DROP DATABASE "+ident)
}

// preparedQuery lists what a dead transaction manager left in a database.
const preparedQuery = `SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = $1`

func (c *Cluster) rollBackPrepared(ctx context.Context, name string) error {
	var gids []string
	err := c.admin.do(ctx, c, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, preparedQuery, name)
		if err != nil {
			return err
		}
		gids, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return fmt.Errorf("listing prepared transactions: %w", err)
	}
	for _, gid := range gids { // only from a session of the same database
		if err := c.Exec(ctx, name, "ROLLBACK PREPARED '"+strings.ReplaceAll(gid, "'", "''")+"'"); err != nil {
			return fmt.Errorf("rolling back a prepared transaction: %w", err)
		}
	}
	return nil
}
