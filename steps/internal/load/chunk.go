package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// columns are what a load carries: all but generated ones.
func columns(t scope.Table) []string {
	var names []string
	for _, c := range t.Columns {
		if !c.Generated {
			names = append(names, pgx.Identifier{c.Name}.Sanitize())
		}
	}
	return names
}

func binary(yes bool) string {
	if yes {
		return " (FORMAT binary)"
	}
	return ""
}

// readChunk is the COPY that reads a chunk. ONLY, since a leaf may have children by legacy
// inheritance, and a tree is read leaf by leaf.
func readChunk(t scope.Table, it journal.Item, bin bool) (sql string, lo lower, err error) {
	if it.Lo == nil {
		return "", lo, errors.New("the chunk has no beginning")
	}
	if err := json.Unmarshal([]byte(*it.Lo), &lo); err != nil {
		return "", lo, fmt.Errorf("reading chunk %d: %w", it.No, err)
	}
	cols := columns(t)
	for i := range cols {
		cols[i] = "t." + cols[i]
	}
	only := "ONLY "
	if lo.Whole && t.Kind == scope.Partitioned {
		only = ""
	}
	where, err := bounds(t, lo, it.Hi)
	if err != nil {
		return "", lo, err
	}
	if t.Identity == scope.AppendOnly {
		where = append(where, uncaptured(t))
	}
	q := fmt.Sprintf("SELECT %s FROM %s%s AS t", strings.Join(cols, ", "), only, lo.Relation)
	if len(where) > 0 {
		q += " WHERE " + strings.Join(where, " AND ")
	}
	return "COPY (" + q + ") TO STDOUT" + binary(bin), lo, nil
}

// uncaptured is true of rows of an append_only table that left no image: a row and its image have the same xmin. That has
// 32 bits, and a frozen row keeps it (PostgreSQL docs, 24.1.5): once ids may have come round, a row of an earlier time
// looks like one of the same transaction, and the text decides as well. Not before: definitions that change, as a label's
// name, change the text of rows but not of their images. No transaction goes on while 2^31 ids are given out.
// Each of the two is a join by hash: a large transaction has as many images as rows of one xmin.
func uncaptured(t scope.Table) string {
	const round = 1 << 31
	images, same := capture.ImageName(t.ID), fmt.Sprintf(` AND e.img COLLATE "C" = %s COLLATE "C"`, capture.Image(t, "t"))
	if failpoint.Mutant("load.xmin_alone") {
		same = ""
	}
	return fmt.Sprintf("NOT EXISTS (SELECT FROM %[1]s e WHERE e.xmin = t.xmin AND e.x < '%[2]d') AND NOT EXISTS (SELECT FROM %[1]s e WHERE e.xmin = t.xmin AND e.x >= '%[2]d'%[3]s)", images, round, same)
}

func bounds(t scope.Table, lo lower, hi *string) ([]string, error) {
	var where []string
	if lo.ByKey {
		k := t.Key.Columns[0]
		compare := func(op, value string) string {
			right := pg.Literal(value) + "::" + k.DeltaType
			if k.Collation != "" {
				right = "(" + right + " COLLATE " + k.Collation + ")"
			}
			return fmt.Sprintf("t.%s %s%s) %s", pgx.Identifier{k.Name}.Sanitize(), strings.TrimSuffix(k.Operator, "=)"), op, right)
		}
		if lo.Key != nil {
			where = append(where, compare(">=", *lo.Key))
		}
		if hi != nil {
			where = append(where, compare("<", *hi))
		}
		return where, nil
	}
	if lo.Block > 0 {
		where = append(where, fmt.Sprintf("t.ctid >= '(%d,0)'::tid", lo.Block))
	}
	if hi != nil {
		end, err := strconv.ParseInt(*hi, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the end of a chunk: %w", err)
		}
		where = append(where, fmt.Sprintf("t.ctid < '(%d,0)'::tid", end))
	}
	return where, nil
}

// writeChunk goes to the root: a leaf may not exist under the same name and bounds on the target.
func writeChunk(t scope.Table, into string, bin bool) string {
	return fmt.Sprintf("COPY %s (%s) FROM STDIN%s", into, strings.Join(columns(t), ", "), binary(bin))
}

// Statement shows how a table is copied, for plans.
func Statement(t scope.Table) string {
	cols := strings.Join(columns(t), ", ")
	from := relation(t)
	where := ""
	if t.Identity == scope.AppendOnly {
		where = " WHERE " + uncaptured(t)
	}
	return fmt.Sprintf("COPY (SELECT %s FROM %s AS t%s) TO STDOUT; on the target: COPY %s (%s) FROM STDIN", cols, from, where, tableName(t), cols)
}
