package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Mode says how much is compared.
type Mode string

// Hash compares every column of every row; Count the number of rows.
const (
	Hash  Mode = "hash"
	Count Mode = "count"
)

// Config is one comparison.
type Config struct {
	From, To *pg.Server
	Tables   []scope.Table // those whose rows both sides should hold
	Mode     Mode          // Defaults to Hash
	Workers  int           // sessions a side. Defaults to 2
	// Pass makes an exact pass and keeps both sides comparable until Release. Nil compares two sides
	// that nobody writes to.
	Pass func(ctx context.Context) (Snapshot, error)
	// Paused is asked once a second while pieces are compared: when it says yes, those that are under way
	// are given up and snapshots end, and the next Pass is asked for at once, which waits. May be nil.
	Paused func(ctx context.Context) bool
	// PieceBytes bounds what is read under one snapshot, so that the source's oldest snapshot is
	// never old. Defaults to 4 GiB.
	PieceBytes int64
	// Report is called after each table, from one goroutine at a time; may be nil.
	Report func(TableResult)
	// Progress is told how many of all bytes were read once, after each piece, from one goroutine at
	// a time; may be nil. A batch that is read again starts where it began.
	Progress func(bytes, all int64)
}

// Result of a comparison.
type Result struct {
	Tables  []TableResult // in the order of Config.Tables
	Rows    int64         // compared, on from
	Elapsed time.Duration
}

// Differing gives the tables that are not equal.
func (r Result) Differing() []TableResult {
	var out []TableResult
	for _, t := range r.Tables {
		if t.Differs {
			out = append(out, t)
		}
	}
	return out
}

// TableResult is one table's part.
type TableResult struct {
	scope.Name
	FromRows, ToRows int64
	Differs          bool
	Rows             []RowDifference // the first ten
	More             bool            // there are further rows
	Elapsed          time.Duration
}

// RowKind says how a row differs.
type RowKind string

// Missing rows are on from only, extra ones on to only.
const (
	Missing RowKind = "missing"
	Extra   RowKind = "extra"
	Changed RowKind = "changed"
)

// RowDifference is one row that is not the same on both sides.
type RowDifference struct {
	Key     string // the key's columns as a row, or for a table without a key the beginning of the row
	Kind    RowKind
	Columns []string // of Changed
}

// String gives "changed (5): name, price".
func (d RowDifference) String() string {
	if len(d.Columns) == 0 {
		return fmt.Sprintf("%s %s", d.Kind, d.Key)
	}
	return fmt.Sprintf("%s %s: %s", d.Kind, d.Key, joinMax(d.Columns, 8))
}

// errTooLarge says that a table is to be read again column by column.
var errTooLarge = errors.New("a row is too large for one text")

// maxAttempts bounds how often a piece is read again because its table moved.
const maxAttempts = 10

// Run compares tables. Batches of a bounded size are compared one after the other, each under
// snapshots of its own, its pieces by several workers at once.
func Run(ctx context.Context, cfg Config) (Result, error) {
	started := time.Now()
	if cfg.Mode == "" {
		cfg.Mode = Hash
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 2
	}
	if cfg.PieceBytes <= 0 {
		cfg.PieceBytes = 4 << 30
	}
	r := &runner{cfg: &cfg, results: make([]*TableResult, len(cfg.Tables)), left: make([]int, len(cfg.Tables)), byField: map[int]bool{}}
	defer r.close(ctx)
	if err := r.prepare(ctx); err != nil {
		return Result{}, err
	}
	batches, err := r.batches(ctx)
	if err != nil {
		return Result{}, err
	}
	for _, b := range batches {
		if err := r.patiently(ctx, b); err != nil {
			return Result{}, err
		}
	}
	out := Result{Elapsed: time.Since(started)}
	for _, t := range r.results {
		out.Tables = append(out.Tables, *t)
		out.Rows += t.FromRows
	}
	return out, nil
}
