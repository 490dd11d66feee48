package scope

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
)

// Shapes hashes what a plan is pinned to, by "schema.table": columns with their types, the key
// with what compares it, the names of the partitions, and how the table is carried. Sizes and
// object ids are left out: they change without a meaning.
func Shapes(s *Scope) map[string]string {
	out := make(map[string]string, len(s.Tables))
	for i := range s.Tables {
		t := &s.Tables[i]
		h := sha256.New()
		t.shape(h)
		out[t.Display()] = hex.EncodeToString(h.Sum(nil)[:16])
	}
	return out
}

func (t *Table) shape(h hash.Hash) {
	_, _ = fmt.Fprintf(h, "%d|%s|%s|%s|%s|%v\n", t.ID, t.Kind, t.Data, t.Identity, t.Capture, t.Inherits)
	for _, c := range t.Columns {
		_, _ = fmt.Fprintf(h, "c|%q|%q|%v|%v|%s\n", c.Name, c.Type, c.NotNull, c.Generated, c.Identity)
	}
	if k := t.Key; k != nil {
		_, _ = fmt.Fprintf(h, "k|%q|%s\n", k.Index, k.Shape)
		for _, c := range k.Columns {
			_, _ = fmt.Fprintf(h, "k|%q|%s|%s|%s\n", c.Name, c.DeltaType, c.Collation, c.Operator)
		}
	}
	for _, m := range t.Members {
		_, _ = fmt.Fprintf(h, "m|%q|%v|%v\n", m.Name, m.Leaf, m.Foreign)
	}
}
