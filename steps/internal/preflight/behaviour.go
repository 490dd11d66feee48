package preflight

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// appTimeouts end a writer that waits at the gate.
var appTimeouts = []string{"lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"}

// settingsSQL gives what was set for roles and databases, one "who, name=value" each.
const settingsSQL = `
SELECT concat_ws(', ', 'role ' || r.rolname, 'database ' || d.datname) || E'\n' || cfg
  FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS cfg
  LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
 WHERE (s.setdatabase = 0 OR d.datname = current_database()) AND split_part(cfg, '=', 1) = ANY ($1::text[]) ORDER BY 1`

// timeouts: while the gate is held, writers wait up to max_write_block; a shorter timeout makes
// them fail, which a cutover must not.
func timeouts(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	least := 2 * f.Runbook.Cutover.MaxWriteBlock
	if !f.Runbook.Cutover.Enabled || least <= 0 {
		return nil, nil
	}
	set, err := f.From.list(ctx, settingsSQL, appTimeouts)
	if err != nil {
		return nil, err
	}
	var short []string
	named := map[string]bool{}
	for _, line := range set {
		who, setting, _ := strings.Cut(line, "\n")
		name, value, _ := strings.Cut(setting, "=")
		if d, ok := guc(value); ok && d > 0 && d < least {
			short, named[name] = append(short, fmt.Sprintf("%s = %s for %s", name, d, who)), true
		}
	}
	for _, name := range appTimeouts {
		// What holds for our own session may come from one of the settings above.
		if d, ok := guc(f.From.Settings[name]); ok && d > 0 && d < least && !named[name] {
			short = append(short, fmt.Sprintf("%s = %s for everybody", name, d))
		}
	}
	if len(short) == 0 {
		return nil, nil
	}
	return one(finding(engine.SeverityWarning, engine.Source, "", fmt.Sprintf("Raise them above %s until the cutover is over, or lower max_write_block.", least),
		"Writers may wait for %s at the gate, and timeouts shorter than twice that would end them: %s.", f.Runbook.Cutover.MaxWriteBlock, some(short))), nil
}

// guc reads a time setting whose base unit is ms
// (https://www.postgresql.org/docs/current/config-setting.html#CONFIG-SETTING-NAMES-VALUES).
func guc(text string) (time.Duration, bool) {
	text = strings.TrimSpace(text)
	digits := strings.TrimRight(text, "usmhind ")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, false
	}
	units := map[string]time.Duration{"": time.Millisecond, "us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	unit, ok := units[strings.TrimSpace(text[len(digits):])]
	return time.Duration(n * float64(unit)), ok
}

// swallowedErrors: a closed gate raises an error, and a function that catches everything would
// take a refused write for done.
func swallowedErrors(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	names, err := f.From.list(ctx, `SELECT quote_ident(n.nspname) || '.' || quote_ident(p.proname) FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
 WHERE l.lanname = 'plpgsql' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
   AND p.prosrc ~* '\mwhen\s+(.*\mor\s+)?others\M'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') ORDER BY 1`)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	return one(finding(engine.SeverityWarning, engine.Source, names[0], "Make them re-raise SQLSTATE 25006 (WHEN read_only_sql_transaction THEN RAISE), or make sure that they write nothing.",
		"Functions with EXCEPTION WHEN OTHERS could swallow the error of a closed gate: %s.", some(names))), nil
}

func eventTriggers(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		names, err := s.list(ctx, "SELECT evtname::text FROM pg_event_trigger e WHERE evtenabled <> 'D' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e') ORDER BY 1")
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			out = append(out, finding(engine.SeverityWarning, s.Name, names[0], "Rehearse, or ALTER EVENT TRIGGER ... DISABLE while the run lasts.", "Event triggers fire when our schema, tables and triggers are created: %s.", some(names)))
		}
	}
	return out, nil
}

// readOnlyDatabases: a cutover opens and closes databases with default_transaction_read_only, which
// their owners may have set themselves.
func readOnlyDatabases(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if f.moved {
		return nil, nil // the cutover's own
	}
	texts := map[engine.Side][2]string{
		engine.Source: {"It is not carried to the target; a rollback gives it back here.", "Nothing, if the target shall take writes. Else, after the cutover, on the target: ALTER DATABASE %s SET default_transaction_read_only = on"},
		engine.Target: {"The flip resets it: the target is to take writes.", "ALTER DATABASE %s RESET default_transaction_read_only"},
	}
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		own, err := s.readOnlyDefault(ctx)
		if err != nil {
			return nil, err
		}
		if own != "" {
			out = append(out, finding(engine.SeverityWarning, s.Name, s.Identity.Database, fmt.Sprintf(texts[s.Name][1], ident(s.Identity.Database)),
				"The database has %s of its own. %s", own, texts[s.Name][0]))
		}
	}
	return out, nil
}

// readOnlyDefault gives "default_transaction_read_only=..." as it is set for the database, if it is on.
func (s *Side) readOnlyDefault(ctx context.Context) (string, error) {
	set, err := s.list(ctx, settingsSQL, []string{"default_transaction_read_only"})
	for _, line := range set {
		who, setting, _ := strings.Cut(line, "\n")
		if who == "database "+s.Identity.Database && !strings.HasSuffix(setting, "=off") {
			return setting, err
		}
	}
	return "", err
}
