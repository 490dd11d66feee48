package compare

import (
	"context"
	"errors"
	"fmt"
	"slices"

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

// node is a table's identity and storage.
type node struct{ oid, file uint32 }

// nodes are those of tables and their members, by name. A snapshot that is older than a rewrite reads nothing
// without an error, so what was read under it counts only if the storage is still the one that the snapshot
// itself shows (https://www.postgresql.org/docs/current/mvcc-caveats.html).
type nodes map[string]node

// seenSQL reads the catalog as the snapshot of its transaction shows it.
const seenSQL = `
SELECT x.schema, x.name, coalesce(c.oid, 0)::oid, coalesce(CASE WHEN c.relkind IN ('r', 'm') THEN c.relfilenode END, 0)::oid
  FROM unnest($1::text[], $2::text[]) AS x (schema, name)
  LEFT JOIN pg_namespace n ON n.nspname = x.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.name`

// nowSQL asks the current catalog, whatever the snapshot: oids come from names, storage from the oid.
const nowSQL = `
SELECT x.schema, x.name, coalesce(o.oid, 0)::oid, coalesce(pg_relation_filenode(o.oid), 0)::oid
  FROM unnest($1::text[], $2::text[]) AS x (schema, name)
 CROSS JOIN LATERAL (SELECT to_regclass(quote_ident(x.schema) || '.' || quote_ident(x.name))::oid AS oid) o`

func readNodes(ctx context.Context, conn *pgx.Conn, sql string, tables []scope.Table) (nodes, error) {
	var schemas, names []string
	for _, t := range tables {
		schemas, names = append(schemas, t.Schema), append(names, t.Name.Name)
		for _, m := range t.Members {
			schemas, names = append(schemas, m.Schema), append(names, m.Name.Name)
		}
	}
	rows, err := conn.Query(ctx, sql, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("reading the tables' storage: %w", err)
	}
	out := nodes{}
	var schema, name string
	var n node
	if _, err := pgx.ForEachRow(rows, []any{&schema, &name, &n.oid, &n.file}, func() error {
		out[pg.Name(schema, name)] = n
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the tables' storage: %w", err)
	}
	return out, nil
}

// moved reports whether the table or one of its members has another identity or storage than before.
func moved(t scope.Table, before, after nodes) bool {
	same := func(schema, name string) bool { return before[pg.Name(schema, name)] == after[pg.Name(schema, name)] }
	return !same(t.Schema, t.Name.Name) || slices.ContainsFunc(t.Members, func(m scope.Member) bool { return !same(m.Schema, m.Name.Name) })
}
