package histories_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// client plays one writer: it begins at the first server, and goes to the other one when it is
// refused or loses its connection.
type client struct {
	w      *world
	index  int
	ops    []Op
	at     int
	conn   *pgx.Conn
	number int
}

const span = 10_000_000 // numbers of one writer

// refusedPause is what a client waits before it asks the other server: while neither takes writes, each
// question is a new session.
const refusedPause = 100 * time.Millisecond

func (c *client) run(ctx context.Context) {
	defer c.drop()
	for i := 0; ctx.Err() == nil && len(c.ops) > 0; i++ {
		op := c.ops[i%len(c.ops)]
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(op.Think) * time.Millisecond):
		}
		if err := c.once(context.WithoutCancel(ctx), op); err != nil {
			c.note(err, op)
		}
	}
}

// note decides where to go on, and complains of errors that an application must never see.
func (c *client) note(err error, op Op) {
	state := sqlState(err)
	if state == "" || state == "25006" || strings.HasPrefix(state, "57") {
		c.drop()
		c.at = 1 - c.at
		time.Sleep(refusedPause)
	}
	var e *pgconn.PgError
	// Who is ended while it waits at the gate (before a flip, or by an administrator) is told where it waited.
	if errors.As(err, &e) && state != "25006" && state != "57P01" && strings.Contains(e.Where+e.Message+e.SchemaName, "pgrunbook") && !c.w.keyRenamed.Load() {
		c.w.complain("a write of the application failed because of us: %v (%s)", err, e.Where)
	}
	if state == "25006" && !strings.Contains(err.Error(), "read-only transaction") && !strings.Contains(err.Error(), "moved to another server") && !strings.Contains(err.Error(), "not open for writes yet") {
		c.w.complain("a write was refused in other words than the runbook's: %v", err)
	}
	_ = op
}

// ran counts a statement, and complains where no server could have run it: what it should test is not
// tested. DDL in the middle may have taken its table or column away.
func (c *client) ran(s Stmt, err error) {
	if state := sqlState(err); strings.HasPrefix(state, "42") && !slices.Contains(c.w.touches(), strings.Trim(s.Table, `"`)) {
		c.w.complain("a statement of the writers cannot run: %v\n%s", err, s.SQL)
	}
	c.w.statements(s.Table, err == nil)
}

func (c *client) drop() {
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.conn.Close(ctx) // a broken connection's error is known already
		c.conn = nil
	}
}

func (c *client) once(ctx context.Context, op Op) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if c.conn == nil || c.conn.IsClosed() {
		conn, err := c.w.ways[c.at].Connect(ctx)
		if err != nil {
			return err
		}
		c.conn = conn
		// A TRUNCATE that waits for the snapshot of a flip keeps the comparison waiting that this one is for.
		if _, err := conn.Exec(ctx, "SET deadlock_timeout = '100ms'; SET lock_timeout = '3s'; SET application_name = 'writer'"); err != nil {
			return err
		}
	}
	c.number++
	r := &record{number: c.index*span + c.number, writer: c.index, lists: op.Lists, seen: map[int][]int{}, transfer: op.Transfer, result: refused}
	err := c.transaction(ctx, op, r)
	c.w.book.put(r)
	if r.result == acknowledged {
		c.w.commits[c.at].Add(1)
	}
	if err != nil && !c.conn.IsClosed() {
		_, back := c.conn.Exec(ctx, "ROLLBACK")
		return errors.Join(err, back)
	}
	return err
}

func (c *client) transaction(ctx context.Context, op Op, r *record) error {
	if _, err := c.conn.Exec(ctx, cond(op.Replica, "BEGIN; SET LOCAL session_replication_role = replica", "BEGIN")); err != nil {
		return err
	}
	for _, s := range op.Body {
		if err := c.statement(ctx, s); err != nil {
			return err
		}
	}
	if t := op.Transfer; t != nil {
		if _, err := c.conn.Exec(ctx, fmt.Sprintf("UPDATE h.account SET balance = balance + CASE id WHEN %d THEN %d ELSE 0 END + CASE id WHEN %d THEN %d ELSE 0 END WHERE id IN (%d, %d)",
			t.From, -t.Amount, t.To, t.Amount, t.From, t.To)); err != nil {
			return err
		}
	}
	for _, k := range op.Lists {
		var v string
		if err := c.conn.QueryRow(ctx, fmt.Sprintf("UPDATE h.list SET v = v || '%d,' WHERE k = %d RETURNING v", r.number, k), pgx.QueryExecModeSimpleProtocol).Scan(&v); err != nil {
			return err
		}
		seen, err := numbers(v)
		if err != nil {
			return err
		}
		r.seen[k] = seen
	}
	return c.end(ctx, op, r)
}

func (c *client) statement(ctx context.Context, s Stmt) error {
	if s.Sub == "" {
		return c.exec(ctx, s)
	}
	if _, err := c.conn.Exec(ctx, "SAVEPOINT s"); err != nil {
		return err
	}
	err := c.exec(ctx, s)
	if err != nil && (c.conn.IsClosed() || sqlState(err) == "" || sqlState(err) == "25006" || strings.HasPrefix(sqlState(err), "57")) {
		return err
	}
	if err != nil {
		c.note(err, Op{})
	}
	if err != nil || s.Sub == "undo" {
		if err == nil {
			c.w.count("savepoint undone")
		}
		_, err = c.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT s")
	}
	return err
}

func (c *client) exec(ctx context.Context, s Stmt) error {
	err := c.execute(ctx, s)
	c.ran(s, err)
	return err
}

func (c *client) execute(ctx context.Context, s Stmt) error {
	if s.Copy == "" {
		_, err := c.conn.Exec(ctx, s.SQL)
		return err
	}
	literal, rest, _ := strings.Cut(s.Copy, "\t") // "@" and an expression stand for its text
	var text string
	if err := c.conn.QueryRow(ctx, "SELECT ("+strings.TrimPrefix(literal, "@")+")::text").Scan(&text); err != nil {
		return err
	}
	text = strings.NewReplacer(`\`, `\\`, "\t", `\t`).Replace(text)
	_, err := c.conn.PgConn().CopyFrom(ctx, strings.NewReader(text+"\t"+rest), s.SQL)
	return err
}

// end ends the transaction and writes down what is known of it.
func (c *client) end(ctx context.Context, op Op, r *record) error {
	commit := "COMMIT"
	gid := fmt.Sprintf("%s-%d", c.w.name, r.number)
	switch op.End {
	case "rollback":
		_, err := c.conn.Exec(ctx, "ROLLBACK")
		if err == nil {
			c.w.count("rolled back")
		}
		return err
	case "prepared", "prepared rollback":
		if tag, err := c.conn.Exec(ctx, "PREPARE TRANSACTION '"+gid+"'"); err != nil || tag.String() != "PREPARE TRANSACTION" {
			if err != nil && sqlState(err) == "" {
				return errors.Join(err, c.forget(gid))
			}
			return err
		}
		c.w.count("prepare")
		commit = cond(op.End == "prepared", "COMMIT", "ROLLBACK") + " PREPARED '" + gid + "'"
	}
	tag, err := c.conn.Exec(ctx, commit)
	switch {
	case op.End == "prepared rollback":
		if err != nil {
			return errors.Join(err, c.forget(gid))
		}
	case err == nil && strings.HasPrefix(tag.String(), "COMMIT"):
		r.result = acknowledged
		c.committed(op)
		if op.End == "prepared" {
			c.w.count("commit prepared")
		}
	case err != nil && op.End == "prepared":
		r.result = unknown // the transaction's manager gives it up, unless it was committed
		return errors.Join(err, c.forget(gid))
	case err != nil && !serverSaidNo(err):
		r.result = unknown
	}
	return err
}

// committed counts what a transaction was made of. A statement in it may have been undone alone.
func (c *client) committed(op Op) {
	if op.Replica {
		c.w.count("replica role")
	}
	for _, s := range op.Body {
		if s.Sub != "" {
			continue
		}
		if strings.HasPrefix(s.SQL, "TRUNCATE") {
			c.w.count("truncate")
		}
		if s.As != "" {
			c.w.count(s.As)
		}
	}
}

func serverSaidNo(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.SeverityUnlocalized == "ERROR"
}

// forget rolls a prepared transaction back wherever it is: its manager has lost the connection.
func (c *client) forget(gid string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, url := range []string{c.w.source, c.w.target} {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "ROLLBACK PREPARED '"+gid+"'")
		_ = conn.Close(ctx)
		if err != nil && !slices.Contains([]string{"42704", "55000"}, sqlState(err)) {
			return err
		}
	}
	return nil
}

func sqlState(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
