package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// sqlStep runs statements of the runbook on one side. Its session is an application's: what it
// writes on the captured side is captured, and a closed gate refuses it.
type sqlStep struct {
	person
	on          engine.Side
	statement   string
	undo        string
	expects     bool // expect is given; it may be empty
	expect      string
	transaction bool
	timeout     time.Duration
}

// sqlDone is the checkpoint of a step on the target: it commits with the statements.
type sqlDone struct {
	Done bool `json:"done"`
}

func decodeSQL(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &sqlStep{
		on:          engine.Side(body.Enum("on", "source", "source", "target")),
		statement:   script(body, b),
		undo:        body.String("undo"),
		transaction: body.Bool("transaction", true),
		timeout:     body.Duration("timeout", 0),
		expects:     body.Known("expect"),
		expect:      body.String("expect"),
	}
	body.Require("on")
	s.person = newPerson(env, place, b, s.on, s.statement, s.undo, s.transaction, s.timeout, s.expects, s.expect)
	return s, body.Done()
}

// script reads the statement, or the file that holds it.
func script(body *runbook.Body, b runbook.StepBlock) string {
	statement, file := body.String("statement"), body.String("file")
	if body.Has("statement") == body.Has("file") {
		body.Errorf("statement", "Which statement?", `Give either statement = "..." or file = "x.sql".`)
		return ""
	}
	if body.Known("statement") && strings.TrimSpace(statement) == "" {
		body.Errorf("statement", "Empty statement", "Write the SQL that is to run.")
	}
	if file == "" {
		return statement
	}
	data, err := b.ReadFile(file)
	if err != nil {
		body.Errorf("file", "Cannot read the file", "%s.", err)
	}
	return string(data)
}

func (s *sqlStep) command() string {
	return "sql " + s.name + ", on the " + string(s.on) + ": " + s.redact.String(firstLine(s.statement))
}
func (s *sqlStep) limit() time.Duration { return s.timeout }

// Plan shows the statement as it will be sent.
func (s *sqlStep) Plan(context.Context) (engine.StepPlan, error) {
	p := s.plan(fmt.Sprintf("run SQL on the %s: %s", s.on, firstLine(s.statement)), "",
		engine.Action{On: s.on, SQL: s.statement, Reverse: s.undo})
	if s.expects {
		p.Why = s.redact.String(fmt.Sprintf("its first value must be %q", s.expect))
	}
	if !s.transaction {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardExternal, Object: s.name, Text: "runs outside a transaction: after a crash in the middle it runs again"})
	} else if s.on == engine.Source {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardExternal, Object: s.name, Text: "runs on the source: when its commit is not acknowledged it runs again"})
	}
	return p, nil
}

func firstLine(sql string) string {
	for line := range strings.SplitSeq(sql, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
			if r := []rune(line); len(r) > 80 {
				return string(r[:79]) + "…"
			}
			return line
		}
	}
	return ""
}

// Apply runs the statements. In a transaction on the target the checkpoint commits with them, so
// that they take effect exactly once.
func (s *sqlStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	exactlyOnce := s.on == engine.Target && s.transaction
	if exactlyOnce {
		var done sqlDone
		found, err := cp.Load(ctx, &done)
		if err != nil {
			return err
		}
		if found && done.Done {
			return nil
		}
	}
	var save func(ctx context.Context, tx pgx.Tx) error
	if exactlyOnce {
		save = func(ctx context.Context, tx pgx.Tx) error { return cp.Save(ctx, tx, sqlDone{Done: true}) }
	}
	return s.run(ctx, s.statement, s.expects, save)
}

// Undo runs the undo statement and forgets that the step was done, in one transaction.
func (s *sqlStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	var forget func(ctx context.Context, tx pgx.Tx) error
	if s.on == engine.Target && s.transaction {
		forget = func(ctx context.Context, tx pgx.Tx) error { return cp.Save(ctx, tx, sqlDone{}) }
	}
	if s.undo == "" {
		return nil
	}
	return s.run(ctx, s.undo, false, forget)
}

func (s *sqlStep) server() *pg.Server {
	if s.on == engine.Source {
		return s.env.Source
	}
	return s.env.Target
}

func (s *sqlStep) run(ctx context.Context, statement string, expects bool, inTx func(context.Context, pgx.Tx) error) error {
	if err := notGone(statement); err != nil {
		return err
	}
	outer := ctx
	if s.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("it took longer than its timeout of %s", s.timeout))
		defer cancel()
	}
	err := runSQL(ctx, s.server(), statement, s.transaction, func(first string, tx pgx.Tx) error {
		if expects && first != s.expect {
			return fmt.Errorf("the first value is %q, expected is %q", first, s.expect)
		}
		if inTx == nil || tx == nil {
			return nil
		}
		return inTx(ctx, tx)
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	hint := "Mend what the server says and run the same command again."
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "25001" {
		hint = "Add transaction = false; such a statement must stand alone in its step."
	}
	return s.fail(outer, "running SQL on the "+string(s.on), firstLine(statement), hint, err)
}

// runSQL sends a script to one side in a session of its own and gives its first value (of the
// last statement that returns rows) to check, inside the transaction where there is one. The
// script's names are looked up as the role's own sessions do.
func runSQL(ctx context.Context, server *pg.Server, script string, transaction bool, check func(first string, tx pgx.Tx) error) (err error) {
	conn, err := server.Connect(ctx, pg.Use{Name: "runbook sql"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "RESET search_path"); err != nil {
		return fmt.Errorf("resetting search_path: %w", err)
	}
	if !transaction {
		first, err := simpleQuery(ctx, conn, script)
		if err != nil {
			return err
		}
		failpoint.Hit("sql.alone")
		return check(first, nil)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	first, err := simpleQuery(ctx, conn, script)
	if err != nil {
		return err
	}
	if conn.PgConn().TxStatus() != 'T' {
		return errors.New("the script ends the transaction it runs in: leave COMMIT and ROLLBACK out, or set transaction = false")
	}
	if err := check(first, tx); err != nil {
		return err
	}
	failpoint.Hit("sql.ran")
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	failpoint.Hit("sql.committed")
	return nil
}

// simpleQuery runs a script of any number of statements and returns the first value of the last
// result that has columns.
func simpleQuery(ctx context.Context, conn *pgx.Conn, script string) (string, error) {
	results := conn.PgConn().Exec(ctx, script)
	first := ""
	for results.NextResult() {
		reader := results.ResultReader()
		if len(reader.FieldDescriptions()) == 0 {
			_, _ = reader.Close() // its error comes again from results.Close
			continue
		}
		first = ""
		for n := 0; reader.NextRow(); n++ {
			if n == 0 {
				first = string(reader.Values()[0])
			}
		}
		_, _ = reader.Close()
	}
	return first, results.Close()
}
