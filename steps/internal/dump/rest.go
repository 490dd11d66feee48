package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// asObjects are the kinds of entries that PostData gives as objects, or that are not carried.
var asObjects = map[string]bool{
	"INDEX": true, "INDEX ATTACH": true, "CONSTRAINT": true, "FK CONSTRAINT": true, "CHECK CONSTRAINT": true, "TRIGGER": true,
	"POLICY": true, "ROW SECURITY": true, "STATISTICS": true, "STATISTICS DATA": true, "EVENT TRIGGER": true, "MATERIALIZED VIEW DATA": true,
	"PUBLICATION": true, "PUBLICATION TABLE": true, "PUBLICATION TABLES IN SCHEMA": true, "SUBSCRIPTION": true, "SUBSCRIPTION TABLE": true,
}

// commentOn are the beginnings of comments that PostData carries with their objects.
var commentOn = []string{"INDEX ", "CONSTRAINT ", "TRIGGER ", "RULE ", "POLICY ", "STATISTICS ", "EVENT TRIGGER ", "PUBLICATION ", "SUBSCRIPTION "}

// Rest picks the entries of the archive that come after the rows and that PostData does not give:
// views, materialized views and functions that need a primary key, their rights and comments, and
// default privileges. What the target has already is left out where making it twice would fail.
func (a *Archive) Rest(ctx context.Context, source, target *pgx.Conn) ([]Entry, error) {
	rules, err := viewRules(ctx, source)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, e := range a.Post {
		switch {
		case asObjects[e.Kind]:
			continue
		case e.Kind == "RULE" && !rules[e.OID]:
			continue
		case e.Kind == "COMMENT" && commentOfObject(e):
			continue
		case e.Kind == "MATERIALIZED VIEW" || e.Kind == "FUNCTION" || e.Kind == "PROCEDURE":
			there, err := sameThere(ctx, source, target, e)
			if err != nil {
				return nil, err
			}
			if there {
				continue
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// commentOfObject reads the label "SCHEMA KIND NAME OWNER", or "- KIND NAME OWNER".
func commentOfObject(e Entry) bool {
	_, tag, _ := strings.Cut(e.Label, " ")
	return slices.ContainsFunc(commentOn, func(p string) bool { return strings.HasPrefix(tag, p) })
}

func viewRules(ctx context.Context, source *pgx.Conn) (map[uint32]bool, error) {
	rows, err := source.Query(ctx, "SELECT oid FROM pg_rewrite WHERE rulename = '_RETURN'")
	if err != nil {
		return nil, fmt.Errorf("reading views: %w", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("reading views: %w", err)
	}
	out := make(map[uint32]bool, len(oids))
	for _, oid := range oids {
		out[oid] = true
	}
	return out, nil
}

// sameThere reports whether the target has an object of the entry's identity.
func sameThere(ctx context.Context, source, target *pgx.Conn, e Entry) (bool, error) {
	var kind string
	var names, args []string
	err := source.QueryRow(ctx, "SELECT type, coalesce(object_names, '{}'), coalesce(object_args, '{}') FROM pg_identify_object_as_address($1, $2, 0)", e.Class, e.OID).Scan(&kind, &names, &args)
	if err != nil {
		return false, fmt.Errorf("identifying %s: %w", e.Label, err)
	}
	var there bool
	look := `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname::text = $1 AND c.relname::text = $2 AND $3::text[] IS NOT NULL)`
	if e.Kind != "MATERIALIZED VIEW" {
		look = `SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname::text = $1 AND p.proname::text = $2
			AND ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY u (t, no) ORDER BY no) = $3::text[])`
	}
	if len(names) != 2 {
		return false, nil
	}
	if err := target.QueryRow(ctx, look, names[0], names[1], args).Scan(&there); err != nil {
		return false, fmt.Errorf("looking for %s: %w", e.Label, err)
	}
	return there, nil
}

// AtFlip gives the statements that wait for the flip, in order: modes of triggers and rules that
// would fire for our own sessions, constraints that old rows break, event triggers last.
func AtFlip(objects []Object) []string {
	var out, last []string
	for _, o := range objects {
		if o.Kind == EventTrigger {
			last = append(last, o.AtFlip...)
			continue
		}
		out = append(out, o.AtFlip...)
	}
	return append(out, last...)
}
