package scope

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// key chooses what identifies the rows of a table: the runbook's key, else the primary key, else
// the unique index with the fewest columns. Every choice is immediate, valid, total and over
// not-null columns, or ON CONFLICT could not use it and deltas would not match.
func (r *resolver) key(rel *relation, rule runbook.TableRule) *Key {
	cols := map[int16]columnRow{}
	for _, c := range r.cat.columns[rel.oid] {
		cols[c.Num] = c
	}
	var best *indexRow
	var refused []string
	for _, in := range r.cat.indexes[rel.oid] {
		why := unusable(in, cols)
		if len(rule.Key) > 0 && sameColumns(in, cols, rule.Key) && why != "" {
			refused = append(refused, fmt.Sprintf("%s %s", in.name.Name, why))
		}
		if len(rule.Key) > 0 && !sameColumns(in, cols, rule.Key) {
			continue
		}
		if in.primary && why != "" {
			r.find(CodeKeyNotUsable, engine.SeverityWarning, rel.String(), fmt.Sprintf("Its primary key %s %s, so it cannot identify rows here.", in.name.Name, why), "")
		}
		if why == "" && better(in, best) {
			best = in
		}
	}
	if best == nil && len(rule.Key) > 0 {
		why := "no unique index covers exactly these columns"
		if len(refused) > 0 {
			why = "the unique index " + strings.Join(refused, ", ")
		}
		r.find(CodeKey, engine.SeverityError, rel.String(), fmt.Sprintf("The runbook's key (%s) cannot be used: %s.", strings.Join(rule.Key, ", "), why),
			"A key needs an immediate, valid unique index without predicate or expressions over NOT NULL columns, on the root of a partitioned table.")
	}
	if best == nil {
		return nil
	}
	return r.cat.keyOf(best, cols)
}

// unusable says why an index identifies no rows; empty means that it does.
func unusable(in *indexRow, cols map[int16]columnRow) string {
	switch {
	case !in.immediate:
		return "is deferrable"
	case !in.valid:
		return "is not valid"
	case !in.total:
		return "has a predicate or expressions"
	}
	for _, c := range in.columns {
		col, ok := cols[c.num]
		switch {
		case !ok:
			return "has expressions"
		case !col.NotNull:
			return fmt.Sprintf("has the nullable column %s", col.Name)
		case col.Generated:
			return fmt.Sprintf("has the generated column %s", col.Name)
		case c.operator == "":
			return fmt.Sprintf("has no equality operator for %s", col.Name)
		}
	}
	return ""
}

func sameColumns(in *indexRow, cols map[int16]columnRow, names []string) bool {
	if len(in.columns) != len(names) {
		return false
	}
	for _, c := range in.columns {
		if !slices.Contains(names, cols[c.num].Name) {
			return false
		}
	}
	return true
}

// better prefers the primary key, then fewer columns, then the name, so that two plans agree.
func better(in, than *indexRow) bool {
	switch {
	case than == nil:
		return true
	case in.primary != than.primary:
		return in.primary
	case len(in.columns) != len(than.columns):
		return len(in.columns) < len(than.columns)
	}
	return in.name.Name < than.name.Name
}

func (c *catalog) keyOf(in *indexRow, cols map[int16]columnRow) *Key {
	k := &Key{Index: in.name, Constraint: in.constraint, Primary: in.primary}
	var shape strings.Builder
	for _, ic := range in.columns {
		col := cols[ic.num]
		kc := KeyColumn{Name: col.Name, DeltaType: c.deltaType(col.TypeOID), Collation: ic.collation, Operator: ic.operator}
		k.Columns = append(k.Columns, kc)
		fmt.Fprintf(&shape, "%s %s;", kc.DeltaType, kc.Collation)
	}
	sum := sha256.Sum256([]byte(shape.String()))
	k.Shape = hex.EncodeToString(sum[:5])
	return k
}
