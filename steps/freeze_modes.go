package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// modesPatience is how long an attempt waits before it holds anybody for tables whose triggers, rules
// and constraints get their mode at the flip.
const modesPatience = 5 * time.Second

// clearWay takes, and lets go at once, the locks that the statements at the opening need: an
// autovacuum gives way to whoever waits for deadlock_timeout, for which there is no time while writers
// are held, and who else is in the way is named before anybody waits.
func (f *flipper) clearWay(ctx context.Context) error {
	// What an earlier attempt was doing when its budget ended may have cost sessions.
	if err := errors.Join(f.looks.again(ctx, f.env, "freeze"), f.reload.again(ctx)); err != nil {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	for _, sql := range f.atOpen {
		names, e, err := f.modeLock(ctx, sql, "set a mode at the flip")
		if err != nil {
			return notNow(err)
		}
		if len(names) == 0 {
			continue
		}
		lock := "LOCK TABLE " + e.Object + " IN SHARE ROW EXCLUSIVE MODE"
		if e.Mode == pg.AccessExclusive {
			lock = "LOCK TABLE " + e.Object + " IN ACCESS EXCLUSIVE MODE"
		}
		err = pg.WithLock(ctx, f.looks.of(f.to), e, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, lock)
			return err
		})
		var blocked *pg.LockError
		if errors.As(err, &blocked) {
			return fmt.Errorf("%w: before %s: %w", freeze.ErrNotNow, sql, named(blocked.Blockers))
		}
		if err != nil {
			return notNow(err)
		}
	}
	return nil
}

// modeLock gives the tables that a statement of the opening locks, and how their lock is asked for.
func (f *flipper) modeLock(ctx context.Context, sql, doing string) (names []scope.Name, e pg.Etiquette, err error) {
	names, mode := locksOf(f.env.Scope, sql)
	oids, err := oidsOf(ctx, f.looks.of(f.to), trees(f.env.Scope, names))
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = pg.Name(n.Schema, n.Name)
	}
	return names, pg.Etiquette{Object: strings.Join(list, ", "), Relations: oids, Mode: mode, GiveUp: modesPatience, Report: waiting(f.cp, f.to, doing)}, err
}

// notNow makes a session that was lost a reason to try again: the next attempt opens another.
func notNow(err error) error {
	if pg.IsConnLost(err) {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	return err
}

// trees adds the members of partition trees: a lock on a root is one on each of them.
func trees(s *scope.Scope, names []scope.Name) []scope.Name {
	out := slices.Clone(names)
	for _, t := range s.Tables {
		if slices.Contains(names, t.Name) {
			for _, m := range t.Members {
				out = append(out, m.Name)
			}
		}
	}
	return out
}

// runAtOpen runs them in the hold, and names who came into the way since.
func (f *flipper) runAtOpen(ctx context.Context, exec freeze.ExecFunc) error {
	for _, sql := range f.atOpen {
		err := exec(ctx, sql)
		if err == nil {
			continue
		}
		if pg.SQLState(err) == "55P03" { // lock_not_available
			err = f.blockedBy(ctx, sql, err)
		}
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// blockedLook bounds the question who is in the way: to's hold has ended with its statement, but
// writers wait until from's is let go.
const blockedLook = 100 * time.Millisecond

// blockedBy adds who is in the way. A process that only ends a flip has no session to ask with.
func (f *flipper) blockedBy(ctx context.Context, sql string, err error) error {
	if f.looks == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), blockedLook)
	defer cancel()
	found, lookErr := inTheWay(ctx, f.looks.of(f.to), f.env.Scope, []string{sql})
	if lookErr != nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, named(found))
}

// named tells blockers of a table lock as a freeze does.
func named(list []pg.Blocker) *freeze.BlockedError {
	e := &freeze.BlockedError{}
	for _, b := range list {
		if b.Foreign() {
			e.Blockers = append(e.Blockers, freeze.Blocker{What: b.String(), Age: b.XactAge})
		}
	}
	return e
}

// inTheWay names who has a lock that one of the statements needs.
func inTheWay(ctx context.Context, conn *pgx.Conn, s *scope.Scope, statements []string) ([]pg.Blocker, error) {
	tables := map[pg.LockMode][]scope.Name{}
	for _, sql := range statements {
		names, mode := locksOf(s, sql)
		tables[mode] = append(tables[mode], names...)
	}
	var list []pg.Blocker
	for mode, names := range tables {
		if len(names) == 0 {
			continue
		}
		oids, err := oidsOf(ctx, conn, trees(s, names))
		if err != nil {
			return nil, err
		}
		found, err := pg.Blockers(ctx, conn, mode, oids...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// locksOf gives the tables in scope that a statement at the opening names, with the strongest lock that
// it takes.
func locksOf(s *scope.Scope, sql string) (names []scope.Name, mode pg.LockMode) {
	for _, t := range s.Tables {
		for n := range dump.Relations(t) {
			if strings.Contains(sql, " TABLE "+pg.Name(n.Schema, n.Name)+" ") {
				names = append(names, n)
			}
		}
	}
	if strings.Contains(sql, " TRIGGER ") {
		return names, pg.ShareRowExclusive
	}
	return names, pg.AccessExclusive
}

const oidsSQL = `
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest($1::text[], $2::text[]) AS w (s, t) ON n.nspname = w.s AND c.relname = w.t`

func oidsOf(ctx context.Context, conn *pgx.Conn, tables []scope.Name) ([]uint32, error) {
	var schemas, names []string
	for _, n := range tables {
		schemas, names = append(schemas, n.Schema), append(names, n.Name)
	}
	rows, err := conn.Query(ctx, oidsSQL, schemas, names)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}
