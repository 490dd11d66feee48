package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

const (
	// sampledBytes is what Measure reads of all heaps together, as long as these are not smaller: within milliseconds.
	sampledBytes = 4 << 20
	// measuredAtOnce is how many tables one statement reads: each takes locks until it ends.
	measuredAtOnce = 200
)

// Waiting is what captured changes take on this side.
type Waiting struct {
	Files int64 // bytes, indexes and dead rows included: passes do not make them smaller, what they free is used again
	All   int64 // of them those of changes that wait for a pass; Files where that is not over enough
	// Late is for each table the bytes of waiting changes with an id below the bound.
	Late map[int32]int64
	// Next is the id below which every change has that anybody has begun to make by now.
	Next uint64
}

// stored is a table of captured changes.
type stored struct {
	name        string // without its schema
	heap, files int64
}

// recordsSQL begins with a row of no table, for the transaction id.
const recordsSQL = `
SELECT '', 0::int8, 0::int8, txid_snapshot_xmax(txid_current_snapshot())::text
UNION ALL
SELECT c.relname::text, coalesce(pg_relation_size(c.oid), 0), coalesce(pg_total_relation_size(c.oid), 0), '0'
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgrunbook' AND c.relkind = 'r' AND (c.relname LIKE 'delta\_%' OR c.relname ~ '^image_[0-9]+$')`

// Measure finds what waits by the share that live rows have of the files, which it reads only where these are over
// enough, and of large ones no more than some hundred blocks: it may be asked often. It rests on nothing that the
// server counts by itself, since a crash and a failover lose that. Late is of changes below the id late, and needs all read.
func Measure(ctx context.Context, conn *pgx.Conn, enough int64, late uint64) (Waiting, error) {
	w := Waiting{Late: map[int32]int64{}}
	rows, err := conn.Query(ctx, recordsSQL)
	if err != nil {
		return w, fmt.Errorf("measuring the deltas: %w", err)
	}
	var records []stored
	var heaps int64
	var r stored
	var next string
	_, err = pgx.ForEachRow(rows, []any{&r.name, &r.heap, &r.files, &next}, func() (err error) {
		if r.name == "" {
			w.Next, err = strconv.ParseUint(next, 10, 64)
			return err
		}
		w.Files += r.files
		if r.heap > 0 {
			records, heaps = append(records, r), heaps+r.heap
		}
		return nil
	})
	if err != nil {
		return w, fmt.Errorf("measuring the deltas: %w", err)
	}
	if w.All = w.Files; w.Files <= enough {
		return w, nil
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return w, err
	}
	w.All = 0
	percent := min(100, 100*float64(sampledBytes)/float64(max(heaps, 1)))
	for some := range slices.Chunk(records, measuredAtOnce) {
		if err := w.add(ctx, conn, some, percent, late, major); err != nil {
			return w, fmt.Errorf("measuring the deltas: %w", err)
		}
	}
	return w, nil
}

// add measures some tables. Keys have the same share of an index as of its heap; of images most may lie in the TOAST table, so
// theirs is a share of all.
func (w *Waiting) add(ctx context.Context, conn *pgx.Conn, records []stored, percent float64, late uint64, major int) error {
	rows, err := conn.Query(ctx, liveSQL(records, percent, major), strconv.FormatUint(late, 10))
	if err != nil {
		return err
	}
	type live struct {
		id          int32
		bytes, late int64
	}
	found := map[int][]live{}
	var n int
	var l live
	if _, err := pgx.ForEachRow(rows, []any{&n, &l.id, &l.bytes, &l.late}, func() error {
		found[n] = append(found[n], l)
		return nil
	}); err != nil {
		return err
	}
	for n, list := range found {
		var bytes int64
		for _, l := range list {
			bytes += l.bytes
		}
		r := records[n]
		of := r.heap
		if imageID.MatchString(r.name) {
			of = r.files
		}
		part := min(1, float64(bytes)*100/percent/float64(of)) * float64(r.files) / float64(bytes) // a sample may have met the fullest blocks
		w.All += int64(float64(bytes) * part)
		for _, l := range list {
			if l.late > 0 {
				w.Late[l.id] += int64(float64(l.late) * part)
			}
		}
	}
	return nil
}

// liveSQL gives the bytes of the live rows of each table's sample, and those of late ones. Keys count with what they take in
// the heap, images with all, their index entry included; the size of one in the TOAST table is known without fetching it.
func liveSQL(records []stored, percent float64, major int) string {
	const width = "(4 + (%s + 7) / 8 * 8)"
	xid, parts := "xid8", make([]string, len(records))
	if major < 13 {
		xid = "int8"
	}
	for n, r := range records {
		rel, bytes := "rel", fmt.Sprintf(width, "pg_column_size(d.*)")
		if m := imageID.FindStringSubmatch(r.name); m != nil {
			rel, bytes = m[1], fmt.Sprintf(width, "72 + coalesce(pg_column_size(img), 0)")
		}
		parts[n] = fmt.Sprintf("SELECT %d, %s, sum(%s), coalesce(sum(%s) FILTER (WHERE x < $1::text::%s), 0) FROM %s d TABLESAMPLE SYSTEM (%g) GROUP BY 2",
			n, rel, bytes, bytes, xid, pg.Name(Schema, r.name), percent)
	}
	return strings.Join(parts, " UNION ALL ")
}
