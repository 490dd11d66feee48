package steps

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Ours is one kind of object of ours that a database holds.
type Ours struct {
	Kind  string `json:"kind"` // trigger, function, table, sequence, schema, setting
	Name  string `json:"name"` // _N stands for numbers that differ
	Count int    `json:"count"`
	Gate  bool   `json:"gate,omitempty"` // of the gate, which finish leaves on the source
}

func (o Ours) String() string {
	name := o.Name
	switch o.Kind {
	case "trigger":
		return fmt.Sprintf("trigger %s on %s", o.Name, engine.Plural(o.Count, "table"))
	case "function", "sequence", "table", "view": // an application may have one of that name
		name = "pgrunbook." + name
	}
	if o.Count > 1 {
		return fmt.Sprintf("%d times %s %s", o.Count, o.Kind, name)
	}
	return o.Kind + " " + name
}

// oursSQL lists what is ours by where it is and how it is called, and beside the gate the default that
// the flip sets. Triggers on our own tables go with these.
const oursSQL = `
SELECT kind, regexp_replace(name, '_[0-9]+(?![0-9a-z])', '_N', 'g') AS like_it, count(*)::int, bool_and(gate) FROM (
  SELECT 'trigger' AS kind, t.tgname::text AS name, t.tgname = '!pgrunbook_gate' AS gate
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
   WHERE c.relnamespace IS DISTINCT FROM to_regnamespace('pgrunbook') AND (n.nspname = 'pgrunbook' OR t.tgname LIKE 'pgrunbook\_capture\_%' OR t.tgname = '!pgrunbook_gate')
  UNION ALL SELECT 'function', proname || '()', proname = 'gate' FROM pg_proc WHERE pronamespace = to_regnamespace('pgrunbook')
  UNION ALL SELECT CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' ELSE 'table' END, relname, relname IN ('gate_flag', 'refused')
    FROM pg_class WHERE relnamespace = to_regnamespace('pgrunbook') AND relkind IN ('r', 'p', 'S', 'v')
  UNION ALL SELECT 'schema', nspname, true FROM pg_namespace WHERE nspname = 'pgrunbook'
  UNION ALL SELECT 'setting', cfg, true FROM pg_db_role_setting s, unnest(s.setconfig) AS cfg
   WHERE s.setrole = 0 AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND split_part(cfg, '=', 1) = 'default_transaction_read_only' AND to_regclass('pgrunbook.gate_flag') IS NOT NULL
) found GROUP BY 1, 2 ORDER BY 1, 2`

func listOurs(ctx context.Context, conn *pgx.Conn) ([]Ours, error) {
	rows, err := conn.Query(ctx, oursSQL)
	if err != nil {
		return nil, fmt.Errorf("listing what is ours: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Ours])
	if err != nil {
		return nil, fmt.Errorf("listing what is ours: %w", err)
	}
	return list, nil
}

// ListOurs reads what of ours a server's database holds.
func ListOurs(ctx context.Context, server *pg.Server) ([]Ours, error) {
	conn, err := server.Connect(ctx, pg.Use{Name: "plan", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return listOurs(ctx, conn)
}

// removals are the actions that a look at a side's catalog gives; of a side that keeps its gate also
// what stays.
func removals(ctx context.Context, env *Env, side engine.Side, keepsGate bool) ([]engine.Action, error) {
	list, err := ListOurs(ctx, env.Server(side))
	if err != nil {
		return nil, sided(side, err)
	}
	var out, stay []engine.Action
	for _, o := range list {
		if keepsGate && o.Gate {
			stay = append(stay, engine.Action{On: side, SQL: "stays: " + o.String()})
		} else {
			out = append(out, engine.Action{On: side, SQL: "drop " + o.String()})
		}
	}
	return append(out, stay...), nil
}
