package compare

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Snapshot is what an exact pass leaves for a comparison.
type Snapshot struct {
	PassID   string // in to's watermark; empty: nobody writes on either side, no watermark is asked for
	Exported string // for SET TRANSACTION SNAPSHOT on from; empty: a snapshot of its own
	Release  func() // lets passes go on; may be called more than once
}

// errMoved says that a table changed its storage while it was read, or that a snapshot does not
// belong to the pass: the comparison is made again.
var errMoved = errors.New("a table was rewritten or truncated while it was compared")

// pair is one session a side. Between open and close both see the rows of one pass.
type pair struct{ from, to *pgx.Conn }

func connectPair(ctx context.Context, cfg *Config, n int) (*pair, error) {
	use := pg.Use{Name: fmt.Sprintf("verify %d", n), ReadOnly: true, Marked: true}
	from, err := cfg.From.Connect(ctx, use)
	if err != nil {
		return nil, err
	}
	to, err := cfg.To.Connect(ctx, use)
	if err != nil {
		_ = from.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return &pair{from: from, to: to}, nil
}

func (p *pair) close(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	_ = p.from.Close(ctx)
	_ = p.to.Close(ctx)
}

const beginSQL = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE"

// open takes the snapshots. To's first query reads the watermark, so its snapshot either holds the
// pass or is thrown away.
func (p *pair) open(ctx context.Context, s Snapshot, fromSide string) error {
	if _, err := p.from.Exec(ctx, beginSQL); err != nil {
		return fmt.Errorf("beginning to compare: %w", err)
	}
	if s.Exported != "" {
		if _, err := p.from.Exec(ctx, "SET TRANSACTION SNAPSHOT "+pg.Literal(s.Exported)); err != nil {
			return fmt.Errorf("taking the pass's snapshot: %w", err)
		}
	} else if _, err := p.from.Exec(ctx, "SELECT 1"); err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	if _, err := p.to.Exec(ctx, beginSQL); err != nil {
		return fmt.Errorf("beginning to compare: %w", err)
	}
	if s.PassID == "" {
		_, err := p.to.Exec(ctx, "SELECT 1")
		return err
	}
	var pass string
	err := p.to.QueryRow(ctx, "SELECT pass::text FROM pgrunbook.watermark WHERE from_side = $1", fromSide).Scan(&pass)
	if err != nil {
		return fmt.Errorf("reading the watermark: %w", err)
	}
	if pass != s.PassID {
		return fmt.Errorf("%w: the watermark shows pass %s, not %s", errMoved, pass, s.PassID)
	}
	return nil
}

// end leaves the snapshots.
func (p *pair) end(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	_, a := p.from.Exec(ctx, "ROLLBACK")
	_, b := p.to.Exec(ctx, "ROLLBACK")
	return errors.Join(a, b)
}

// nodes are the storage of tables: a snapshot that is older than a rewrite reads nothing without an
// error, so what was read counts only if the storage is the same before and after.
type nodes map[string]uint32

// nodesSQL asks the current catalog, not the snapshot: oids come from names, storage from the oid.
const nodesSQL = `
SELECT x.name, coalesce(pg_relation_filenode(to_regclass(x.name)), 0)::oid, coalesce(to_regclass(x.name)::oid, 0::oid)
  FROM unnest($1::text[]) AS x (name)`

func readNodes(ctx context.Context, conn *pgx.Conn, tables []scope.Table) (nodes, error) {
	var names []string
	for _, t := range tables {
		names = append(names, pg.Name(t.Schema, t.Name.Name))
		for _, m := range t.Members {
			names = append(names, pg.Name(m.Schema, m.Name.Name))
		}
	}
	rows, err := conn.Query(ctx, nodesSQL, names)
	if err != nil {
		return nil, fmt.Errorf("reading the tables' storage: %w", err)
	}
	out := nodes{}
	var name string
	var node, oid uint32
	if _, err := pgx.ForEachRow(rows, []any{&name, &node, &oid}, func() error {
		out[name], out[name+" oid"] = node, oid
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the tables' storage: %w", err)
	}
	return out, nil
}

// sameNodes reports whether nothing moved.
func sameNodes(before, after [2]nodes) bool {
	return maps.Equal(before[0], after[0]) && maps.Equal(before[1], after[1])
}
