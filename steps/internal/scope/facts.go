package scope

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// factRow says what exists beside tables and sequences.
type factRow struct {
	LargeObjects  bool
	Publications  []string
	Subscriptions []string
	EventTriggers []string
	ConfigTables  []string // tables of extensions that hold configuration
	ReadOnly      string   // the database's own default_transaction_read_only; empty: not set
}

const factsSQL = `
SELECT EXISTS (SELECT FROM pg_largeobject_metadata),
       ARRAY (SELECT pubname::text FROM pg_publication ORDER BY 1),
       ARRAY (SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1),
       ARRAY (SELECT evtname::text FROM pg_event_trigger WHERE NOT EXISTS (
                SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = pg_event_trigger.oid AND d.deptype = 'e') ORDER BY 1),
       ARRAY (SELECT e.extname || ' (' || c::regclass::text || ')' FROM pg_extension e, unnest(e.extconfig) AS c ORDER BY 1),
       coalesce((SELECT split_part(cfg, '=', 2) FROM pg_db_role_setting s, unnest(s.setconfig) AS cfg
                  WHERE s.setrole = 0 AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
                    AND split_part(cfg, '=', 1) = 'default_transaction_read_only'), '')`

// tempLimitSQL gives the smallest temp_file_limit of the server, a database or a role, in kB as
// the settings have it (https://www.postgresql.org/docs/current/runtime-config-resource.html).
const tempLimitSQL = `
SELECT setting FROM pg_settings WHERE name = 'temp_file_limit'
UNION ALL
SELECT split_part(cfg, '=', 2) FROM pg_db_role_setting s, unnest(s.setconfig) AS cfg
 WHERE split_part(cfg, '=', 1) = 'temp_file_limit' AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))`

func (c *catalog) readFacts(ctx context.Context, tx pgx.Tx) error {
	facts, err := collect(ctx, tx, factsSQL, pgx.RowToStructByPos[factRow])
	if err != nil {
		return fmt.Errorf("reading what else there is: %w", err)
	}
	c.facts = facts[0]
	limits, err := collect(ctx, tx, tempLimitSQL, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("reading temp_file_limit: %w", err)
	}
	for _, text := range limits {
		limit := kilobytes(text)
		if limit >= 0 && (c.tempLimit == 0 || limit < c.tempLimit) {
			c.tempLimit = max(limit, 1)
		}
	}
	return nil
}

// kilobytes reads a setting whose unit without a suffix is kB; -1 means none.
func kilobytes(text string) int64 {
	text = strings.TrimSpace(text)
	digits := strings.TrimRight(text, "kMGTB ")
	var n int64
	if _, err := fmt.Sscan(digits, &n); err != nil || n < 0 {
		return -1
	}
	switch strings.TrimSpace(text[len(digits):]) {
	case "B":
		return n
	case "MB":
		return n << 20
	case "GB":
		return n << 30
	case "TB":
		return n << 40
	}
	return n << 10
}

// notCarried says in one sentence each what stays behind.
func (r *resolver) notCarried() {
	say := func(format string, args ...any) {
		r.scope.NotCarried = append(r.scope.NotCarried, fmt.Sprintf(format, args...))
	}
	f := r.cat.facts
	if f.LargeObjects {
		say("Large objects are not carried: changes to them fire no trigger.")
	}
	if len(f.Publications) > 0 {
		say("Publications are not carried: %s. Their subscribers stay with the source.", strings.Join(f.Publications, ", "))
	}
	if len(f.Subscriptions) > 0 {
		say("Subscriptions are not carried: %s. Create them on the target when the source no longer needs them.", strings.Join(f.Subscriptions, ", "))
	}
	if len(f.EventTriggers) > 0 {
		say("Event triggers are created on the target and enabled after the switch: %s.", strings.Join(f.EventTriggers, ", "))
	}
	if len(f.ConfigTables) > 0 {
		say("Rows that were added to configuration tables of extensions are carried once, by pg_dump, and not followed: %s.", strings.Join(f.ConfigTables, ", "))
	}
	var foreign, unlogged []string
	for _, rel := range r.cat.relations {
		switch {
		case rel.decision == runbook.Out || rel.extension != "":
		case rel.kind == "f":
			foreign = append(foreign, rel.String())
		case rel.isTable() && rel.persistence == "u":
			unlogged = append(unlogged, rel.String())
		}
	}
	if len(foreign) > 0 {
		say("Rows of foreign tables stay where they are: %s.", strings.Join(foreign, ", "))
	}
	if len(unlogged) > 0 {
		r.find(CodeUnlogged, engine.SeverityInfo, "", "Unlogged tables are carried and stay unlogged; a crash of the source empties them and stops the run: "+strings.Join(unlogged, ", ")+".", "")
	}
}
