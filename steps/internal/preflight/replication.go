package preflight

import (
	"context"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// publications: a subscriber of FOR ALL TABLES stops when a change of a table that it lacks arrives. On the target
// they also keep rows from being deleted or updated while tables are loaded without their keys: a published table needs a replica
// identity for that. There those of whole schemas in scope do the same.
func publications(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	all, err := f.From.list(ctx, "SELECT pubname::text FROM pg_publication WHERE puballtables ORDER BY 1")
	if err != nil {
		return nil, err
	}
	var out []engine.Finding
	if len(all) > 0 {
		out = append(out, finding(engine.SeverityError, engine.Source, all[0], "Replace it by a publication that lists its tables (CREATE PUBLICATION ... FOR TABLE ..., ALTER SUBSCRIPTION ... SET PUBLICATION).",
			"Publications FOR ALL TABLES would publish our tables too, and their subscribers would stop: %s.", some(all)))
	}
	wide := "SELECT pubname::text FROM pg_publication WHERE puballtables"
	if f.To.Identity.Major >= 15 {
		wide += " UNION SELECT p.pubname FROM pg_publication p JOIN pg_publication_namespace s ON s.pnpubid = p.oid JOIN pg_namespace n ON n.oid = s.pnnspid WHERE n.nspname = ANY ($1)"
	} else {
		wide += " AND $1::text[] IS NOT NULL"
	}
	schemas := []string{}
	for _, t := range f.Scope.Tables {
		schemas = append(schemas, t.Schema)
	}
	if all, err = f.To.list(ctx, wide+" ORDER BY 1", schemas); err != nil || len(all) == 0 {
		return out, err
	}
	return append(out, finding(engine.SeverityError, engine.Target, all[0], "DROP PUBLICATION "+ident(all[0])+", and create it after the cutover.",
		"Publications would publish tables while they are loaded, and have no key by which rows could be deleted or updated there: %s.", some(all))), nil
}

// subscriptions are no errors here: row triggers carry what they write while tables are loaded and
// followed. No gate stops their workers, so the freeze refuses while one is enabled.
func subscriptions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		names, err := s.list(ctx, "SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND subenabled ORDER BY 1")
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			continue
		}
		fix := "Just before the cutover: ALTER SUBSCRIPTION " + ident(names[0]) + " DISABLE, and create it on the target afterwards."
		text := "Subscriptions write into the source: %s. Their tables are captured by row triggers, but no gate stops their workers: the freeze refuses while one that writes into tables in scope is enabled."
		if s.Name == engine.Target {
			fix, text = "ALTER SUBSCRIPTION "+ident(names[0])+" DISABLE", "Subscriptions write into the target, where nobody else may write: %s."
		}
		out = append(out, finding(engine.SeverityWarning, s.Name, names[0], fix, text, some(names)))
	}
	return out, nil
}

// standbys lists them, and finds synchronous commits that nobody confirms.
func standbys(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		names, err := s.list(ctx, "SELECT coalesce(nullif(application_name, ''), 'pid ' || pid) || coalesce(' (' || sync_state || ')', '') FROM pg_stat_replication ORDER BY 1")
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			out = append(out, finding(engine.SeverityInfo, s.Name, "", "Watch their lag while the copy runs.", "Standbys follow it: %s.", some(names)))
		}
		if sync := strings.TrimSpace(s.Settings["synchronous_standby_names"]); sync != "" && len(names) == 0 {
			out = append(out, finding(engine.SeverityError, s.Name, "", "Start the standby, or empty synchronous_standby_names and reload.", "synchronous_standby_names is %q and no standby is connected: every durable commit would wait for ever.", sync))
		}
	}
	return out, nil
}

// limits: to a role without these rights other sessions and standbys look idle, and a limit would
// never be over.
func limits(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	var kinds []string
	for _, l := range f.Runbook.Limits {
		if l.Kind == "replica_lag" || l.Kind == "sessions" {
			kinds = append(kinds, l.Kind)
		}
	}
	if len(kinds) == 0 || !f.From.RoleKnown {
		return nil, nil
	}
	blind, err := f.From.list(ctx, "SELECT $1::text WHERE NOT pg_has_role($1::text, 'pg_read_all_stats', 'USAGE')", f.From.Role)
	if err != nil || len(blind) == 0 {
		return nil, err
	}
	return one(finding(engine.SeverityError, engine.Source, kinds[0], f.From.join("pg_read_all_stats")+" Or take the limit out.",
		"Role %s cannot see other roles' sessions and standbys, so these limits would never be over: %s.", blind[0], strings.Join(kinds, ", "))), nil
}
