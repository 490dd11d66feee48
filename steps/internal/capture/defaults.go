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
func memberDefaults(t scope.Table, was, now fingerprint, alone map[string]bool) []Change {
	before, given := was.byOID(), givenDefaults(was, now)
	var changes []Change
	for _, r := range now.Relations[1:] {
		old := before[r.OID].Columns
		for i, c := range r.Columns {
			root, changed := given[c.Name]
			if i >= len(old) || c.Dropped || c.Generated || c.Default == old[i].Default || changed && c.Default == root && !alone[c.Name] {
				continue
			}
			ch := newChange(t, ColumnDefault, Carry, fmt.Sprintf("column %q of its partition %s has another default", c.Name, pg.Name(r.Schema, r.Name)))
			ch.Column, ch.Member, ch.SQL = c.Name, r.name(), setDefault(r, true, c)
			changes = append(changes, ch)
		}
	}
	return changes
}

// givenDefaults are the root's that changed, of columns that it had before as well, by column.
func givenDefaults(was, now fingerprint) map[string]string {
	given := map[string]string{}
	for i, c := range now.Relations[0].Columns {
		if old := was.Relations[0].Columns; i >= len(old) || old[i].Default != c.Default {
			given[c.Name] = c.Default
		}
	}
	return given
}

// rootDefaults lets the root's new defaults that did not come to all of its partitions here, as with ALTER TABLE ONLY, reach
// none there: a target that somebody else made has defaults of its own. They are given back by column.
func rootDefaults(was, now fingerprint, changes []Change) (alone map[string]bool) {
	before, given := was.byOID(), givenDefaults(was, now)
	alone = map[string]bool{}
	for _, r := range now.Relations[1:] {
		old := before[r.OID].Columns
		for i, c := range r.Columns {
			if root, changed := given[c.Name]; i < len(old) && !c.Dropped && changed && (c.Default != root || c.Default == old[i].Default) {
				alone[c.Name] = true
			}
		}
	}
	for _, c := range now.Relations[0].Columns {
		for i, ch := range changes {
			if ch.What == ColumnDefault && ch.Rule == Carry && ch.Column == c.Name && alone[c.Name] {
				changes[i].SQL = setDefault(now.Relations[0], true, c)
			}
		}
	}
	return alone
}

func (f fingerprint) byOID() map[uint32]relPrint {
	all := map[uint32]relPrint{}
	for _, r := range f.Relations {
		all[r.OID] = r
	}
	return all
}
