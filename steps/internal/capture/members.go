package capture

import (
	"slices"
	"strconv"
	"strings"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Place is where a partition hangs, and how it is cut itself.
type Place struct {
	Member, Parent scope.Name
	Bound, PartKey string // as the server writes them; PartKey is empty where it is not partitioned
}

// SQL makes the partition.
func (p Place) SQL() string {
	sql := "CREATE TABLE " + pg.Name(p.Member.Schema, p.Member.Name) + " PARTITION OF " + pg.Name(p.Parent.Schema, p.Parent.Name) + " " + p.Bound
	if p.PartKey != "" {
		sql += " PARTITION BY " + p.PartKey
	}
	return sql
}

// inheritance names what a table inherits from or passes on. Row triggers log the rows of their own table whatever a
// statement names; statement triggers miss those that it changed through a new parent, and would make images of a
// child's rows.
func inheritance(t scope.Table, was, now fingerprint) []Change {
	same := func(a, b link) bool { return a.Name == b.Name && a.Xmin == b.Xmin }
	if slices.EqualFunc(was.Children, now.Children, same) && slices.EqualFunc(was.Parents, now.Parents, same) {
		return nil
	}
	for _, l := range slices.Concat(now.Parents, now.Children) {
		if l.Kind == "p" || strings.HasPrefix(l.Name, "pg_temp_") {
			return []Change{newChange(t, Inheritance, Stop, "it became a partition of another table, or a temporary table inherits from it: "+l.Name)}
		}
	}
	c := newChange(t, Inheritance, Carry, "its inheritance changed")
	gained := slices.ContainsFunc(now.Parents, func(p link) bool {
		return !slices.ContainsFunc(was.Parents, func(old link) bool { return same(old, p) })
	})
	c.Unlike = t.Capture == scope.Statement && (gained || t.Identity != scope.ByKey)
	return []Change{c}
}

// inherited names the trace of a parent that a table had and has no more: INHERIT and NO INHERIT, like ATTACH and DETACH,
// write each inherited column's row of the catalog and leave it as it was. What an UPDATE or a DELETE of that parent
// changed meanwhile, statement triggers have not seen. A type that is set to what it was leaves the same trace, and costs
// a load.
func inherited(t scope.Table, was, now fingerprint, others []Change) []Change {
	reread := func(c Change) bool { return c.What == Rewritten || c.What == Inheritance }
	if t.Capture != scope.Statement || slices.ContainsFunc(others, reread) {
		return nil
	}
	var anew []string
	for i, old := range was.Relations[0].Columns {
		if c := now.Relations[0].Columns[i]; !c.Dropped && old.Xmin != c.Xmin && old.Said == c.Said {
			anew = append(anew, strconv.Quote(c.Name))
		}
	}
	if len(anew) == 0 {
		return nil
	}
	return []Change{newChange(t, Inheritance, Recopy, "the catalog's rows of "+strings.Join(anew, ", ")+" were written anew and say what they said, as when it inherits from a table and does no more: rows may have changed unseen through that one")}
}

// members compares the relations of a tree.
func members(t scope.Table, was, now fingerprint) []Change {
	var changes []Change
	before := map[uint32]relPrint{}
	for _, r := range was.Relations {
		before[r.OID] = r
	}
	left := map[uint32]bool{}
	for _, r := range now.Relations {
		left[r.OID] = true
		old, ok := before[r.OID]
		if !ok {
			changes = append(changes, added(t, now, r))
			continue
		}
		changes = append(changes, relationChanges(t, now, old, r)...)
	}
	for _, r := range was.Relations {
		if !left[r.OID] {
			c := newChange(t, PartitionRemoved, Recopy, "the partition "+pg.Name(r.Schema, r.Name)+" was detached or dropped")
			c.Member, c.OID = r.name(), r.OID
			changes = append(changes, c)
		}
	}
	return changes
}

func (r relPrint) name() scope.Name { return scope.Name{Schema: r.Schema, Name: r.Name} }

// added is a new partition: its rows from before its triggers are logged by InstallOn.
func added(t scope.Table, now fingerprint, r relPrint) Change {
	if r.Kind == "f" {
		return newChange(t, PartitionAdded, Stop, "a foreign table joined it: "+pg.Name(r.Schema, r.Name))
	}
	c := newChange(t, PartitionAdded, Carry, "it has a new partition "+pg.Name(r.Schema, r.Name))
	c.Member, c.Places = r.name(), []Place{now.place(r)}
	c.SQL = c.Places[0].SQL()
	return c
}

// moved is a partition that was detached and attached again: rows may have changed meanwhile. Where it came back to
// another place the other side has to have it there before they are read. Places are those of its own place too: the
// other side may have taken it off there meanwhile.
func moved(t scope.Table, now fingerprint, was, is relPrint) Change {
	name := pg.Name(is.Schema, is.Name)
	c := newChange(t, PartitionMoved, Recopy, "the partition "+name+" was detached and attached again")
	c.Member = is.name()
	below, foreign := now.places(is)
	same := was.Parent == is.Parent && was.Bound == is.Bound
	switch {
	case foreign && same:
		return c
	case foreign:
		return newChange(t, PartitionMoved, Stop, "the partition "+name+" was detached and attached again, to another place, with a foreign table")
	case !same:
		c.Rule = Carry
		c.Text += ", to another place"
	}
	c.Places = below
	list := []string{"DROP TABLE " + name}
	for _, p := range c.Places {
		list = append(list, p.SQL())
	}
	c.SQL = strings.Join(list, "; ")
	return c
}

func (f fingerprint) place(r relPrint) Place {
	p := Place{Member: r.name(), Bound: r.Bound, PartKey: r.PartKey}
	for _, parent := range f.Relations {
		if parent.OID == r.Parent {
			p.Parent = parent.name()
		}
	}
	return p
}

// places are those of a partition and of all below it, each after its parent.
func (f fingerprint) places(r relPrint) (list []Place, foreign bool) {
	list, foreign = []Place{f.place(r)}, r.Kind == "f"
	below := map[uint32]bool{r.OID: true}
	for _, o := range f.Relations { // by level
		if below[o.Parent] {
			below[o.OID] = true
			list, foreign = append(list, f.place(o)), foreign || o.Kind == "f"
		}
	}
	return list, foreign
}

// relationChanges compares one member with itself. A rewrite that changes rows changes both the
// file node and the columns' rows in the catalog; VACUUM FULL, CLUSTER and SET LOGGED change only
// the former, SET STATISTICS and GRANT only the latter.
func relationChanges(t scope.Table, print fingerprint, was, now relPrint) []Change {
	var changes []Change
	name := pg.Name(now.Schema, now.Name)
	add := func(what What, rule Rule, text string) {
		c := newChange(t, what, rule, text)
		c.Member = now.name()
		changes = append(changes, c)
	}
	if was.Schema != now.Schema || was.Name != now.Name {
		add(Renamed, Stop, "its partition "+pg.Name(was.Schema, was.Name)+" is now "+name)
	}
	if was.Kind != now.Kind {
		add(Renamed, Stop, name+" is now of another kind")
	}
	if was.Parent != 0 && (was.InheritXmin != now.InheritXmin || was.Parent != now.Parent || was.Bound != now.Bound) {
		changes = append(changes, moved(t, print, was, now))
	}
	if was.Node != now.Node && !slices.EqualFunc(was.Columns, now.Columns, func(a, b colPrint) bool { return a.Xmin == b.Xmin }) {
		add(Rewritten, Recopy, name+" was rewritten")
	}
	if !armed(t, now) || !slices.Equal(was.Triggers, now.Triggers) {
		add(Tampered, Recopy, "our triggers on "+name+" were disabled, dropped or made anew: rows may have changed unseen")
	}
	return changes
}

// armed reports whether all triggers that a member needs stand and fire always.
func armed(t scope.Table, r relPrint) bool {
	want := triggersFor(t.Capture, r.Kind)
	if len(r.Triggers) != len(want) {
		return false
	}
	for _, g := range r.Triggers {
		if g.Enabled != always() {
			return false
		}
	}
	return true
}
