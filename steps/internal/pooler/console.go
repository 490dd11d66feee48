package pooler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// commandTimeout bounds every console command but PAUSE; the console answers from memory.
const commandTimeout = 5 * time.Second

// record is one row of a SHOW command by column name. Releases differ in their columns.
type record map[string]string

// command runs one console command on a connection.
func command(ctx context.Context, conn *pgconn.PgConn, text string) ([]record, error) {
	results, err := conn.Exec(ctx, text).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	var records []record
	for _, result := range results {
		for _, row := range result.Rows {
			r := record{}
			for i, field := range result.FieldDescriptions {
				r[field.Name] = string(row[i])
			}
			records = append(records, r)
		}
	}
	return records, nil
}

// ask runs a command on the connection that is kept open; a connection that has gone stale
// (client_idle_timeout, a restart of the pooler) is replaced once. Only for commands that may run
// twice.
func (p *Pooler) ask(ctx context.Context, text string) ([]record, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	for again := false; ; again = true {
		conn, fresh, err := p.connected(ctx)
		if err != nil {
			return nil, err
		}
		records, err := command(ctx, conn, text)
		var refused *pgconn.PgError
		if err == nil || fresh || again || ctx.Err() != nil || errors.As(err, &refused) && !conn.IsClosed() {
			return records, err
		}
		p.drop()
	}
}

// connected gives the kept connection, opening it where there is none. The caller holds p.mu.
func (p *Pooler) connected(ctx context.Context) (conn *pgconn.PgConn, fresh bool, err error) {
	if p.conn != nil && !p.conn.IsClosed() {
		return p.conn, false, nil
	}
	p.drop()
	if p.conn, err = p.server.ConnectConsole(ctx); err != nil {
		return nil, false, err
	}
	return p.conn, true, nil
}

// drop closes the kept connection. The caller holds p.mu.
func (p *Pooler) drop() {
	if p.conn != nil {
		closeConn(p.conn)
		p.conn = nil
	}
}

// closeConn ends a connection whose use is over, even when the context is.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// refusal gives the console's own words, or "". All its errors have one SQLSTATE, 08P01.
func refusal(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Message
	}
	return ""
}

// consoleName quotes a database name for a console command.
func consoleName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
