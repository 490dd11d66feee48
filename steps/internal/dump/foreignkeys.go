package dump

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Violation is a foreign key that rows of the source break.
type Violation struct {
	Object Object
	Detail string // the server's: the first key without a partner
}

// EnsureForeignKeys adds foreign keys as NOT VALID, which needs no scan, and then validates those
// that the source has validated, several at once; validation takes SHARE UPDATE EXCLUSIVE, which
// lets rows be written (https://www.postgresql.org/docs/current/sql-altertable.html, notes).
//
// Rows that break a key were carried as the source has them: such a key stays NOT VALID (on a
// partitioned table it is not made) and is returned. To be called after an exact pass, while only
// exact passes run.
func (b *Builder) EnsureForeignKeys(ctx context.Context, keys []Object) ([]Violation, error) {
	conn, err := b.Connect(ctx, "foreign keys")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var later, roots []Object
	for _, o := range keys {
		if err := b.hold(ctx); err != nil {
			return nil, err
		}
		st, err := stateOf(ctx, conn, o)
		if err != nil {
			return nil, err
		}
		switch {
		case st == complete:
			continue
		case o.Root:
			roots = append(roots, o)
			continue
		case st == missing:
			if err := b.locked(ctx, conn, o, func(ctx context.Context) error { return inTx(ctx, conn, "", o.SQL) }); err != nil {
				return nil, objectError(o, err)
			}
		}
		failpoint.Hit("dump.unvalidated")
		if !o.NotValid {
			later = append(later, o)
		}
	}
	var mu sync.Mutex
	var broken []Violation
	note := func(o Object, err error) error {
		if err == nil {
			return nil
		}
		detail, ok := violated(err)
		if !ok {
			return objectError(o, err)
		}
		mu.Lock()
		defer mu.Unlock()
		broken = append(broken, Violation{Object: o, Detail: detail})
		return nil
	}
	err = b.parallel(ctx, batches(later, true), func(ctx context.Context, conn *pgx.Conn, o Object) error {
		err := b.lockedAs(ctx, conn, pg.ShareUpdateExclusive, o.String(), []scope.Name{o.Table}, func(ctx context.Context) error {
			_, err := conn.Exec(ctx, "ALTER TABLE "+pg.Name(o.Table.Schema, o.Table.Name)+" VALIDATE CONSTRAINT "+ident(o.Name))
			return err
		})
		if err == nil && b.Done != nil {
			b.Done(o)
		}
		return note(o, err)
	})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("dump.validated")
	for _, o := range roots {
		err := b.locked(ctx, conn, o, func(ctx context.Context) error { return inTx(ctx, conn, "", o.SQL) })
		if err := note(o, err); err != nil {
			return nil, err
		}
	}
	return broken, nil
}

// violated reports whether an error is foreign_key_violation, with the server's detail.
func violated(err error) (string, bool) {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23503" {
		return pgErr.Detail, true
	}
	return "", false
}
