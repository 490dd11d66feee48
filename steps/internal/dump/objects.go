package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Kind of an object that comes after the rows.
type Kind string

// The kinds, in the order in which they are made.
const (
	Index        Kind = "index"       // neither unique nor a constraint's
	Unique       Kind = "unique"      // unique index, unique or primary key constraint
	Exclusion    Kind = "exclusion"   // exclusion constraint
	Attach       Kind = "attach"      // ties an index of a partition to its parent's
	IndexSetting Kind = "setting"     // replica identity, cluster mark, statistics target, comment of an index
	Statistics   Kind = "statistics"  // extended statistics object
	Check        Kind = "check"       // check constraint that is NOT VALID on the source, on a table or domain
	ForeignKey   Kind = "foreign_key" //
	Rule         Kind = "rule"
	Policy       Kind = "policy"
	RowSecurity  Kind = "row_security"
	Trigger      Kind = "trigger"
	EventTrigger Kind = "event_trigger"
)

// Object is one thing that is made after the rows, as data read from the source.
type Object struct {
	Kind  Kind
	Table scope.Name // the relation that it is on; empty for domains and event triggers
	Name  string     // unquoted
	// References is the other table of a foreign key, which is locked as well.
	References scope.Name
	SQL        []string // one statement each, to be run in one transaction; for unique and plain indexes the first makes the index
	// Constraint is the statement that makes a constraint of the index that SQL[0] made; empty
	// for an index alone. IndexSQL of partitioned tables has no such split.
	Constraint string
	Parent     string // of Attach: quoted name of the parent index; also of ForeignKey on a partition: "true"
	Tablespace string // empty: the database's
	Key        bool   // the index behind the scope's key
	Pages      int64  // of an index on the source, as its build or the last VACUUM or ANALYZE counted them
	Primary    bool
	NotValid   bool     // the source has not validated it
	Partition  bool     // on a member of a partition tree
	Root       bool     // on a partitioned relation
	Late       bool     // on a materialized view, which may itself be made after the rows
	AtFlip     []string // statements that wait for the flip
	NotCarried string   // set: why it is not made at all
	owner      string   // on the source, of statistics: other kinds follow their table
	policy     *policyRoles
	domain     scope.Name // that a check is on
	mode       string     // of a trigger or rule on the source, as the catalog has it
	turn       string     // gives it that mode
}

// policyRoles are the parts of CREATE POLICY around its roles.
type policyRoles struct {
	head  string
	roles []string // unquoted; empty is PUBLIC
	tail  string
}

// WithRoles gives the objects with the target's names for roles: policies are for the roles that
// the target has, statistics get their owners. A policy none of whose roles is
// there is not carried, and says so.
func WithRoles(objects []Object, rename Renamed) []Object {
	out := slices.Clone(objects)
	for i, o := range out {
		if to, ok := rename(o.owner); ok && o.owner != "" {
			out[i].SQL = append(slices.Clone(o.SQL), "ALTER STATISTICS "+o.Name+" OWNER TO "+ident(to))
		}
		if o.policy == nil || len(o.policy.roles) == 0 {
			continue
		}
		var roles []string
		for _, r := range o.policy.roles {
			if r == "" {
				roles = append(roles, "PUBLIC")
			} else if to, ok := rename(r); ok {
				roles = append(roles, ident(to))
			}
		}
		if len(roles) == 0 {
			out[i].NotCarried = o.String() + " is not made: the target has none of its roles"
			continue
		}
		out[i].SQL = append([]string{o.policy.head + strings.Join(roles, ", ") + o.policy.tail}, o.SQL[1:]...)
	}
	return out
}

// String gives "kind name on table", for messages.
func (o Object) String() string {
	if o.Table.Name == "" {
		return fmt.Sprintf("%s %s", o.Kind, o.Name)
	}
	return fmt.Sprintf("%s %s on %s", o.Kind, o.Name, o.Table.Display())
}

// reader collects objects over one connection.
type reader struct {
	conn  *pgx.Conn
	major int
	skip  map[objectID]bool // what an exclusion drags along
	keys  map[string]bool   // quoted names of the scope's key indexes, and of their partitions'
	out   []Object
}

// PostData reads every object of the source that is made after the rows: those of all relations
// that the scope does not exclude, whether their rows are carried or not. Objects of ours, of
// extensions and of excluded tables are not among them.
func PostData(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]Object, error) {
	gone, _, err := dependents(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	r := &reader{conn: conn, skip: gone, keys: map[string]bool{}}
	if r.major, err = majorOf(ctx, conn); err != nil {
		return nil, err
	}
	for i := range s.Tables {
		if k := s.Tables[i].Key; k != nil {
			r.keys[pg.Name(k.Index.Schema, k.Index.Name)] = true
		}
	}
	for _, read := range []func(context.Context) error{
		r.indexes, r.statistics, r.checks, r.foreignKeys, r.rules, r.policies, r.rowSecurity, r.triggers, r.eventTriggers,
	} {
		if err := read(ctx); err != nil {
			return nil, fmt.Errorf("reading the objects that come after the rows: %w", err)
		}
	}
	return r.out, nil
}

func majorOf(ctx context.Context, conn *pgx.Conn) (int, error) {
	var num int
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::int").Scan(&num); err != nil {
		return 0, fmt.Errorf("asking for the server's version: %w", err)
	}
	return num / 10000, nil
}

// mine leaves out objects of PostgreSQL, of extensions and of ours. It expects the relation c in
// namespace n.
const mine = `n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_catalog.pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')`

// gone reports whether an object was left out with an excluded one.
func (r *reader) gone(class, oid uint32) bool { return r.skip[objectID{class, oid}] }

// Catalog oids are fixed (pg_class.h and its siblings).
const (
	classRelation   = 1259
	classConstraint = 2606
	classTrigger    = 2620
	classRewrite    = 2618
	classPolicy     = 3256
	classStatistic  = 3381
)

// add appends an object and its comment, if it has one.
func (r *reader) add(o Object, comment *string, on string) {
	if comment != nil && o.NotCarried == "" {
		o.SQL = append(o.SQL, "COMMENT ON "+on+" IS "+pg.Literal(*comment))
	}
	r.out = append(r.out, o)
}

func ident(s string) string { return pgx.Identifier{s}.Sanitize() }
