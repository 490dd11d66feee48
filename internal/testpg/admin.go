package testpg

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// admin is a session that a cluster keeps for making and dropping databases: tests do that by the
// hundred, and a new session costs more than the statement.
type admin struct {
	mu     sync.Mutex
	conn   *pgx.Conn
	models sync.Map // databases that others are copies of: a *model by its script
}

// model is a database that is made once.
type model struct {
	once sync.Once
	name string
	err  error
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

// createDB makes a database, an empty one unless it is the copy of another. Copying the template's files costs
// a third of what copying its pages through the log does; before 15 there is no other way.
func (c *Cluster) createDB(ctx context.Context, name, of string) error {
	sql := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	if of != "" {
		sql += " TEMPLATE " + pgx.Identifier{of}.Sanitize()
	}
	if c.Major >= 15 {
		sql += " STRATEGY file_copy"
	}
	return c.adminExec(ctx, sql)
}

// copyDB makes a database in which a script has run.
func (c *Cluster) copyDB(ctx context.Context, name, script string) error {
	kept, _ := c.admin.models.LoadOrStore(script, &model{name: fmt.Sprintf("model%d", dbCount.Add(1))})
	m, _ := kept.(*model)
	m.once.Do(func() {
		if m.err = c.createDB(ctx, m.name, ""); m.err == nil {
			m.err = c.runScript(ctx, m.name, script)
		}
	})
	if m.err != nil {
		return m.err
	}
	return c.createDB(ctx, name, m.name)
}

// runScript leaves no session: a database with one cannot be copied.
func (c *Cluster) runScript(ctx context.Context, db, script string) error {
	conn, err := pgx.Connect(ctx, c.URL(db, c.Superuser))
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", db, err)
	}
	_, err = conn.PgConn().Exec(ctx, script).ReadAll()
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("filling %s: %w", db, err)
	}
	return nil
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
