package capture

import (
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// setDefault gives a column the default that it has here. Without only the server gives it to all partitions as well;
// heirs are compared each on their own.
func setDefault(r relPrint, only bool, c colPrint) string {
	verb, what := "", "DROP DEFAULT"
	if only {
		verb = "ONLY "
	}
	if c.Default != "" {
		what = "SET DEFAULT " + c.Default
	}
	return fmt.Sprintf("ALTER TABLE %s%s ALTER COLUMN %s %s", verb, pg.Name(r.Schema, r.Name), pgx.Identifier{c.Name}.Sanitize(), what)
}

// memberDefaults are defaults of partitions that changed, and not with the root's. Those that the root's new default must
// not reach on the other side, and those of new partitions, whoever carries the change finds there.
func memberDefaults(t scope.Table, was, now fingerprint) []Change {
	before := map[uint32]relPrint{}
	for _, r := range was.Relations {
		before[r.OID] = r
	}
	given := map[string]string{} // by the root to all partitions
	for i, c := range now.Relations[0].Columns {
		if old := was.Relations[0].Columns; i >= len(old) || old[i].Default != c.Default {
			given[c.Name] = c.Default
		}
	}
	var changes []Change
	for _, r := range now.Relations[1:] {
		old := before[r.OID].Columns
		for i, c := range r.Columns {
			root, changed := given[c.Name]
			if i >= len(old) || c.Dropped || c.Generated || c.Default == old[i].Default || changed && c.Default == root {
				continue
			}
			ch := newChange(t, ColumnDefault, Carry, fmt.Sprintf("column %q of its partition %s has another default", c.Name, pg.Name(r.Schema, r.Name)))
			ch.Column, ch.Member, ch.SQL = c.Name, r.name(), setDefault(r, true, c)
			changes = append(changes, ch)
		}
	}
	return changes
}
