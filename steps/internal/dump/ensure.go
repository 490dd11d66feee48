package dump

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// state of an object on the target.
type state int

const (
	missing state = iota
	partly        // an index that a broken build left invalid, an index without its constraint, a constraint not validated
	complete
)

// Ensure makes one object unless it is there. An invalid index that a broken concurrent build left
// is dropped and built again. Errors name the object and keep the SQLSTATE.
func (b *Builder) Ensure(ctx context.Context, conn *pgx.Conn, o Object, concurrently bool) error {
	if o.NotCarried != "" || len(o.SQL) == 0 {
		return nil
	}
	err := b.politely(ctx, conn, o, concurrently)
	if err != nil {
		return objectError(o, err)
	}
	return nil
}

// politely asks for locks briefly and again: who reads there already must not queue behind us. A
// concurrent build lets everybody pass, and waits for old snapshots as long as they last.
func (b *Builder) politely(ctx context.Context, conn *pgx.Conn, o Object, concurrently bool) error {
	made := false
	if concurrently && o.isIndex() && !o.Root && o.hasIndexStatement() {
		var err error
		if made, err = b.makeConcurrently(ctx, conn, o); err != nil {
			return err
		}
	}
	return b.locked(ctx, conn, o, func(ctx context.Context) error { return b.ensure(ctx, conn, o, made) })
}

// locked runs statements about one object under the lock etiquette of internal/pg.
func (b *Builder) locked(ctx context.Context, conn *pgx.Conn, o Object, do func(ctx context.Context) error) error {
	return b.lockedAs(ctx, conn, pg.AccessExclusive, o.String(), []scope.Name{o.Table, o.References}, do)
}

// lockedAs is locked for statements whose strongest lock on any of the tables is known.
func (b *Builder) lockedAs(ctx context.Context, conn *pgx.Conn, mode pg.LockMode, object string, tables []scope.Name, do func(ctx context.Context) error) error {
	e := pg.Etiquette{Object: object, Mode: mode, Report: b.Waiting}
	for _, name := range tables {
		if name.Name == "" {
			continue
		}
		var oid uint32
		if err := conn.QueryRow(ctx, "SELECT coalesce(to_regclass($1)::oid, 0::oid)", pg.Name(name.Schema, name.Name)).Scan(&oid); err != nil {
			return err
		}
		e.Relations = append(e.Relations, oid)
	}
	return pg.WithSessionLock(ctx, conn, e, do)
}

func objectError(o Object, err error) error {
	if ctxErr := contextError(err); ctxErr != nil {
		return fmt.Errorf("making %s: %w", o, err)
	}
	hint := "Mend the cause on the target and run the same command again: what is done is not done twice."
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "23505", "23P01":
			hint = "The rows break it: compare them with pgrunbook verify; where the source itself has such rows, mend them there. (" + pgErr.Detail + ")"
		case "53100":
			hint = "The target's disk is full: make room and run the same command again."
		}
	}
	return &engine.Error{Op: "making", Object: o.String(), Err: err, Hint: hint}
}

func contextError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// ensure makes what is missing of an object. begun says that its index was made a moment ago, so that
// what hangs on it, as a comment, is not there yet.
func (b *Builder) ensure(ctx context.Context, conn *pgx.Conn, o Object, begun bool) error {
	st, err := stateOf(ctx, conn, o)
	if err != nil {
		return err
	}
	if st == complete && !begun {
		return nil
	}
	switch {
	case o.isIndex() && !o.Root && o.hasIndexStatement():
		err = b.makeIndex(ctx, conn, o)
	default:
		err = inTx(ctx, conn, o.Tablespace, o.SQL)
	}
	failpoint.Hit("dump.made")
	if err == nil && b.Done != nil {
		b.Done(o)
	}
	return err
}

func (o Object) hasIndexStatement() bool { return strings.HasPrefix(o.SQL[0], "CREATE ") }

// makeIndex makes an index and then its constraint, which may be there in part. With a constraint
// they are two transactions: a lock that it does not get must not cost the index.
func (b *Builder) makeIndex(ctx context.Context, conn *pgx.Conn, o Object) error {
	exists, err := usable(ctx, conn, o)
	if err != nil {
		return err
	}
	rest := o.SQL[1:]
	if o.Constraint != "" {
		rest = append([]string{o.Constraint}, rest...)
	}
	switch {
	case exists:
		return inTx(ctx, conn, "", rest)
	case o.Constraint == "":
		return inTx(ctx, conn, o.Tablespace, o.SQL)
	}
	if err := inTx(ctx, conn, o.Tablespace, o.SQL[:1]); err != nil {
		return err
	}
	failpoint.Hit("dump.indexed")
	return inTx(ctx, conn, "", rest)
}

// makeConcurrently makes an index alone, without stopping writers, unless it is there.
func (b *Builder) makeConcurrently(ctx context.Context, conn *pgx.Conn, o Object) (made bool, err error) {
	exists, err := usable(ctx, conn, o)
	if err != nil || exists {
		return false, err
	}
	create := strings.Replace(o.SQL[0], "INDEX ", "INDEX CONCURRENTLY ", 1)
	if err := setTablespace(ctx, conn, o.Tablespace, false); err != nil {
		return false, err
	}
	_, err = conn.Exec(ctx, create)
	if reset := setTablespace(ctx, conn, "", false); reset != nil && err == nil {
		err = reset
	}
	failpoint.Hit("dump.concurrently")
	return err == nil, err
}

// usable reports whether an index is there. One that a broken build left invalid is dropped.
func usable(ctx context.Context, conn *pgx.Conn, o Object) (bool, error) {
	exists, valid, err := indexState(ctx, conn, o)
	if err != nil || !exists || valid {
		return exists, err
	}
	if _, err := conn.Exec(ctx, "DROP INDEX CONCURRENTLY "+pg.Name(o.Table.Schema, o.Name)); err != nil {
		return false, fmt.Errorf("dropping what a broken build left: %w", err)
	}
	return false, nil
}

// setTablespace chooses where new indexes go; a tablespace that the target does not have is passed
// over for the database's own (the plan says so).
func setTablespace(ctx context.Context, conn *pgx.Conn, name string, local bool) error {
	_, err := conn.Exec(ctx, `SELECT set_config('default_tablespace', coalesce((SELECT spcname::text FROM pg_tablespace WHERE spcname::text = $1), ''), $2)`, name, local)
	if err != nil {
		return fmt.Errorf("choosing the tablespace: %w", err)
	}
	return nil
}

// inTx runs statements in one transaction.
func inTx(ctx context.Context, conn *pgx.Conn, tablespace string, statements []string) error {
	if len(statements) == 0 {
		return nil
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if tablespace != "" {
			if err := setTablespace(ctx, tx.Conn(), tablespace, true); err != nil {
				return err
			}
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("running %s: %w", sql, err)
			}
		}
		return nil
	})
}

const indexStateSQL = `
SELECT i.indisvalid FROM pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace JOIN pg_index i ON i.indexrelid = x.oid
 WHERE n.nspname::text = $1 AND x.relname::text = $2`

func indexState(ctx context.Context, conn *pgx.Conn, o Object) (exists, valid bool, err error) {
	err = conn.QueryRow(ctx, indexStateSQL, o.Table.Schema, o.Name).Scan(&valid)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, nil
	}
	return err == nil, valid, err
}

const constraintStateSQL = `
SELECT con.convalidated FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname::text = $1 AND c.relname::text = $2 AND con.conname::text = $3`

// lookSQL finds whether an object of a kind is there; its parameters are schema, table and name.
var lookSQL = map[Kind]string{
	Attach: `SELECT EXISTS (SELECT FROM pg_inherits h JOIN pg_class x ON x.oid = h.inhrelid JOIN pg_namespace n ON n.oid = x.relnamespace
		WHERE n.nspname::text = $1 AND x.relname::text = $3 AND x.relkind IN ('i', 'I') AND $2::text IS NOT NULL)`,
	Statistics: `SELECT EXISTS (SELECT FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace JOIN pg_class c ON c.oid = s.stxrelid JOIN pg_namespace tn ON tn.oid = c.relnamespace
		WHERE tn.nspname::text = $1 AND c.relname::text = $2 AND format('"%s"."%s"', replace(n.nspname, '"', '""'), replace(s.stxname, '"', '""')) = $3)`,
	Rule: `SELECT EXISTS (SELECT FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname::text = $1 AND c.relname::text = $2 AND r.rulename::text = $3)`,
	Policy: `SELECT EXISTS (SELECT FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname::text = $1 AND c.relname::text = $2 AND p.polname::text = $3)`,
	Trigger: `SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname::text = $1 AND c.relname::text = $2 AND t.tgname::text = $3 AND NOT t.tgisinternal)`,
	EventTrigger: `SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname::text = $3 AND $1::text IS NOT NULL AND $2::text IS NOT NULL)`,
}

func stateOf(ctx context.Context, conn *pgx.Conn, o Object) (state, error) {
	if o.isIndex() {
		return indexObjectState(ctx, conn, o)
	}
	if o.Kind == ForeignKey {
		return constraintState(ctx, conn, o)
	}
	sql := lookSQL[o.Kind]
	if sql == "" || o.Kind == Trigger && o.Partition {
		return missing, nil // its statements may be repeated
	}
	var there bool
	if err := conn.QueryRow(ctx, sql, o.Table.Schema, o.Table.Name, o.Name).Scan(&there); err != nil {
		return missing, fmt.Errorf("looking for %s: %w", o, err)
	}
	if there {
		return complete, nil
	}
	return missing, nil
}

func indexObjectState(ctx context.Context, conn *pgx.Conn, o Object) (state, error) {
	exists, valid, err := indexState(ctx, conn, o)
	switch {
	case err != nil:
		return missing, fmt.Errorf("looking for %s: %w", o, err)
	case !exists:
		return missing, nil
	case o.Root: // valid only once every partition's index is attached
		return complete, nil
	case !valid:
		return partly, nil
	case o.Constraint == "":
		return complete, nil
	}
	return constraintState(ctx, conn, o)
}

func constraintState(ctx context.Context, conn *pgx.Conn, o Object) (state, error) {
	var valid bool
	err := conn.QueryRow(ctx, constraintStateSQL, o.Table.Schema, o.Table.Name, o.Name).Scan(&valid)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		if o.isIndex() {
			return partly, nil
		}
		return missing, nil
	case err != nil:
		return missing, fmt.Errorf("looking for %s: %w", o, err)
	case !valid && !o.NotValid:
		return partly, nil
	}
	return complete, nil
}
