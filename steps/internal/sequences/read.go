package sequences

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// State is a sequence as it stands on one side.
type State struct {
	scope.Name
	Last      int64 // last_value
	Called    bool  // is_called: Last was handed out; if not, it is the next value
	Increment int64
	Min       int64
	Max       int64
	Cycle     bool
}

// ownSchema holds the gate's sequences, which are never carried.
const ownSchema = "pgrunbook"

// definitionsSQL reads what may have changed since the plan, and the value of every sequence that
// was called. pg_sequence_last_value is NULL for the others.
const definitionsSQL = `
SELECT x.no - 1, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, pg_sequence_last_value(s.seqrelid::oid::regclass)
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x (nsp, rel, no)
  JOIN pg_namespace n ON n.nspname::text = x.nsp
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname::text = x.rel AND c.relkind = 'S'
  JOIN pg_sequence s ON s.seqrelid = c.oid`

// batch is how many relations one UNION ALL reads: planning one of 2,000 takes seconds, forty of
// fifty 0.1 s.
const batch = 50

// Read gives the state of each sequence, in the order of seqs. A sequence that is not there is an
// error of class stale.
func Read(ctx context.Context, conn *pgx.Conn, seqs []scope.Sequence) ([]State, error) {
	states := make([]State, len(seqs))
	found := make([]bool, len(seqs))
	var schemas, names []string
	for i, s := range seqs {
		if s.Schema == ownSchema {
			return nil, fmt.Errorf("reading sequences: %s is ours and is never carried", s.Display())
		}
		states[i].Name = s.Name
		schemas, names = append(schemas, s.Schema), append(names, s.Name.Name)
	}
	rows, err := conn.Query(ctx, definitionsSQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("reading sequences: %w", err)
	}
	var i int
	var s State
	var last *int64
	var uncalled []int
	_, err = pgx.ForEachRow(rows, []any{&i, &s.Increment, &s.Min, &s.Max, &s.Cycle, &last}, func() error {
		s.Name, found[i] = states[i].Name, true
		s.Last, s.Called = 0, last != nil
		if last != nil {
			s.Last = *last
		} else {
			uncalled = append(uncalled, i)
		}
		states[i] = s
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading sequences: %w", err)
	}
	if i := slices.Index(found, false); i >= 0 {
		return nil, &engine.Error{
			Class: engine.ClassStale, Op: "reading sequence", Object: seqs[i].Display(), Err: fmt.Errorf("it is not there any more"),
			Hint: "Run plan again: the sequence was dropped or renamed.",
		}
	}
	for part := range slices.Chunk(uncalled, batch) {
		if err := readRelations(ctx, conn, states, part); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// readRelations reads last_value and is_called from the sequences themselves: setval with is_called
// = false and ALTER SEQUENCE RESTART leave a next value that no catalog shows.
func readRelations(ctx context.Context, conn *pgx.Conn, states []State, part []int) error {
	var b strings.Builder
	for n, i := range part {
		if n > 0 {
			b.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&b, "SELECT %d, last_value, is_called FROM %s", i, pg.Name(states[i].Schema, states[i].Name.Name))
	}
	rows, err := conn.Query(ctx, b.String())
	if err != nil {
		return fmt.Errorf("reading sequences: %w", err)
	}
	var i int
	var last int64
	var called bool
	_, err = pgx.ForEachRow(rows, []any{&i, &last, &called}, func() error {
		states[i].Last, states[i].Called = last, called
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading sequences: %w", err)
	}
	return nil
}

// ownedSQL gives the owned sequences whose column is an integer and leads a btree index, so that
// its largest value costs one look.
const ownedSQL = `
SELECT x.no - 1
  FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS x (nsp, rel, col, no)
  JOIN pg_namespace n ON n.nspname::text = x.nsp
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname::text = x.rel
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname::text = x.col AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
 WHERE EXISTS (SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am m ON m.oid = ic.relam AND m.amname = 'btree'
                WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = a.attnum)`

// Columns gives the largest value (the smallest for a descending sequence) in the column that owns
// each sequence, by the place in seqs. Sequences without an owner, and columns without an index to
// look it up in, are left out.
func Columns(ctx context.Context, conn *pgx.Conn, seqs []scope.Sequence) (map[int]int64, error) {
	schemas, tables, columns := make([]string, len(seqs)), make([]string, len(seqs)), make([]string, len(seqs))
	for i, s := range seqs {
		if s.OwnerTable != nil {
			schemas[i], tables[i], columns[i] = s.OwnerTable.Schema, s.OwnerTable.Name, s.OwnerColumn
		}
	}
	rows, err := conn.Query(ctx, ownedSQL, schemas, tables, columns)
	if err != nil {
		return nil, fmt.Errorf("reading which columns own sequences: %w", err)
	}
	owned, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, fmt.Errorf("reading which columns own sequences: %w", err)
	}
	out := map[int]int64{}
	for part := range slices.Chunk(owned, batch) {
		var b strings.Builder
		for n, i := range part {
			if n > 0 {
				b.WriteString(" UNION ALL ")
			}
			f := "max"
			if seqs[i].Increment < 0 {
				f = "min"
			}
			fmt.Fprintf(&b, "SELECT %d, (SELECT %s(%s)::int8 FROM %s)", i, f, pgx.Identifier{columns[i]}.Sanitize(), pg.Name(schemas[i], tables[i]))
		}
		rows, err := conn.Query(ctx, b.String())
		if err != nil {
			return nil, fmt.Errorf("reading the largest values of columns that own sequences: %w", err)
		}
		var i int
		var v *int64
		if _, err := pgx.ForEachRow(rows, []any{&i, &v}, func() error {
			if v != nil {
				out[i] = *v
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("reading the largest values of columns that own sequences: %w", err)
		}
	}
	return out, nil
}
