package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

const rulesSQL = `
SELECT r.oid, c.oid, n.nspname::text, c.relname::text, r.rulename::text, pg_get_ruledef(r.oid), r.ev_enabled::text, obj_description(r.oid, 'pg_rewrite')
  FROM pg_rewrite r
  JOIN pg_class c ON c.oid = r.ev_class
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.rulename <> '_RETURN' AND ` + mine + `
 ORDER BY r.oid`

func (r *reader) rules(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, rulesSQL)
	if err != nil {
		return err
	}
	var oid, rel uint32
	var schema, table, name, def, mode string
	var comment *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &rel, &schema, &table, &name, &def, &mode, &comment}, func() error {
		if r.gone(classRewrite, oid) || r.gone(classRelation, rel) {
			return nil
		}
		o := Object{Kind: Rule, Name: name, SQL: []string{strings.TrimSuffix(def, ";")}}
		o.Table.Schema, o.Table.Name = schema, table
		modes(&o, mode, "RULE "+ident(name))
		r.add(o, comment, "RULE "+ident(name)+" ON "+pg.Name(schema, table))
		return nil
	})
	return err
}

// turning makes a trigger or rule fire as the catalog says.
var turning = map[string]string{"O": "ENABLE", "D": "DISABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}

// modes gives a trigger or rule the firing mode that it has on the source. What fires under
// session_replication_role = replica would fire for every row that we carry, so ALWAYS and REPLICA
// wait, disabled, for the flip.
func modes(o *Object, mode, what string) {
	table := "ALTER TABLE " + pg.Name(o.Table.Schema, o.Table.Name)
	o.mode, o.turn = mode, table+" "+turning[mode]+" "+what
	switch mode {
	case "D":
		o.SQL = append(o.SQL, o.turn)
	case "A", "R":
		o.SQL = append(o.SQL, table+" DISABLE "+what)
		o.AtFlip = append(o.AtFlip, o.turn)
	}
}

// triggersSQL leaves out what the server makes itself: internal triggers, and copies of a parent's
// trigger on partitions (tgparentid since 13, internal before), except those with a mode of their own.
const triggersSQL = `
SELECT t.oid, c.oid, n.nspname::text, c.relname::text, t.tgname::text, pg_get_triggerdef(t.oid), t.tgenabled::text, %s, obj_description(t.oid, 'pg_trigger')
  FROM pg_trigger t
  JOIN pg_class c ON c.oid = t.tgrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_proc f ON f.oid = t.tgfoid
  JOIN pg_namespace fn ON fn.oid = f.pronamespace
 WHERE NOT t.tgisinternal AND fn.nspname <> 'pgrunbook' AND ` + mine + `
 ORDER BY %[1]s, t.oid`

func (r *reader) triggers(ctx context.Context) error {
	copied := "false"
	if r.major >= 13 {
		copied = "t.tgparentid <> 0"
	}
	rows, err := r.conn.Query(ctx, fmt.Sprintf(triggersSQL, copied))
	if err != nil {
		return err
	}
	var oid, rel uint32
	var schema, table, name, def, mode string
	var isCopy bool
	var comment *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &rel, &schema, &table, &name, &def, &mode, &isCopy, &comment}, func() error {
		if r.gone(classTrigger, oid) || r.gone(classRelation, rel) {
			return nil
		}
		o := Object{Kind: Trigger, Name: name, Partition: isCopy}
		o.Table.Schema, o.Table.Name = schema, table
		if !isCopy {
			o.SQL = []string{def}
		}
		modes(&o, mode, "TRIGGER "+ident(name))
		if isCopy {
			if mode == "O" { // its parent may have another mode
				o.AtFlip = append(o.AtFlip, o.turn)
			}
			comment = nil
		}
		// ENABLE TRIGGER on a partitioned table also changes its partitions, so the copies come after.
		r.add(o, comment, "TRIGGER "+ident(name)+" ON "+pg.Name(schema, table))
		return nil
	})
	return err
}

const policiesSQL = `
SELECT p.oid, c.oid, n.nspname::text, c.relname::text, p.polname::text, p.polpermissive, p.polcmd::text,
       ARRAY(SELECT coalesce(a.rolname::text, '') FROM unnest(p.polroles) WITH ORDINALITY u (role, no) LEFT JOIN pg_roles a ON a.oid = u.role ORDER BY u.no),
       pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid), obj_description(p.oid, 'pg_policy')
  FROM pg_policy p
  JOIN pg_class c ON c.oid = p.polrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE ` + mine + `
 ORDER BY p.oid`

var policyCommand = map[string]string{"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}

// policies have no pg_get_policydef; the statement is put together as pg_dump does (dumpPolicy).
func (r *reader) policies(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, policiesSQL)
	if err != nil {
		return err
	}
	var oid, rel uint32
	var schema, table, name, command string
	var isPermissive bool
	var roles []string
	var using, check, comment *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &rel, &schema, &table, &name, &isPermissive, &command, &roles, &using, &check, &comment}, func() error {
		if r.gone(classPolicy, oid) || r.gone(classRelation, rel) {
			return nil
		}
		sql := "CREATE POLICY " + ident(name) + " ON " + pg.Name(schema, table)
		if !isPermissive {
			sql += " AS RESTRICTIVE"
		}
		sql += " FOR " + policyCommand[command] + " TO "
		p := policyRoles{head: sql, roles: slices.Clone(roles)}
		quoted := make([]string, len(roles))
		for i, role := range roles {
			if quoted[i] = ident(role); role == "" {
				quoted[i] = "PUBLIC"
			}
		}
		if using != nil {
			p.tail += " USING (" + *using + ")"
		}
		if check != nil {
			p.tail += " WITH CHECK (" + *check + ")"
		}
		sql += strings.Join(quoted, ", ") + p.tail
		o := Object{Kind: Policy, Name: name, SQL: []string{sql}, policy: &p}
		o.Table.Schema, o.Table.Name = schema, table
		r.add(o, comment, "POLICY "+ident(name)+" ON "+pg.Name(schema, table))
		return nil
	})
	return err
}

const rowSecuritySQL = `
SELECT c.oid, n.nspname::text, c.relname::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relrowsecurity AND ` + mine + `
 ORDER BY c.oid`

func (r *reader) rowSecurity(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, rowSecuritySQL)
	if err != nil {
		return err
	}
	var rel uint32
	var schema, table string
	_, err = pgx.ForEachRow(rows, []any{&rel, &schema, &table}, func() error {
		if r.gone(classRelation, rel) {
			return nil
		}
		o := Object{Kind: RowSecurity, Name: "row security", SQL: []string{"ALTER TABLE " + pg.Name(schema, table) + " ENABLE ROW LEVEL SECURITY"}}
		o.Table.Schema, o.Table.Name = schema, table
		r.add(o, nil, "")
		return nil
	})
	return err
}

const eventTriggersSQL = `
SELECT e.evtname::text, e.evtevent::text, coalesce(e.evttags::text[], '{}'), n.nspname::text, p.proname::text, e.evtenabled::text,
       obj_description(e.oid, 'pg_event_trigger')
  FROM pg_event_trigger e
  JOIN pg_proc p ON p.oid = e.evtfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname <> 'pgrunbook'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_catalog.pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
 ORDER BY e.evtname`

// eventTriggers are made disabled, so that they see neither our DDL nor our end; at the flip they
// get the mode that they have on the source.
func (r *reader) eventTriggers(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, eventTriggersSQL)
	if err != nil {
		return err
	}
	var name, event, schema, function, mode string
	var tags []string
	var comment *string
	_, err = pgx.ForEachRow(rows, []any{&name, &event, &tags, &schema, &function, &mode, &comment}, func() error {
		sql := "CREATE EVENT TRIGGER " + ident(name) + " ON " + event
		if len(tags) > 0 {
			quoted := make([]string, len(tags))
			for i, t := range tags {
				quoted[i] = pg.Literal(t)
			}
			sql += " WHEN TAG IN (" + strings.Join(quoted, ", ") + ")"
		}
		o := Object{Kind: EventTrigger, Name: name, SQL: []string{
			sql + " EXECUTE PROCEDURE " + pg.Name(schema, function) + "()", "ALTER EVENT TRIGGER " + ident(name) + " DISABLE",
		}}
		o.mode, o.turn = mode, "ALTER EVENT TRIGGER "+ident(name)+" "+turning[mode]
		if mode != "D" {
			o.AtFlip = []string{o.turn}
		}
		r.add(o, comment, "EVENT TRIGGER "+ident(name))
		return nil
	})
	return err
}
