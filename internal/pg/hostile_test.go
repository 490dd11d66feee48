package pg

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// setting is a line of pg_settings that somebody can set for a role or a database.
type setting struct {
	Name, Category, Vartype  string
	MinVal, MaxVal, ResetVal *string
	Enumvals                 []string
}

// harmlessKinds are categories of settings that are no matter of ours, whatever a new version adds to them.
var harmlessKinds = map[string]string{
	"Reporting and Logging":                                        "what the server logs",
	"Process Title":                                                "what ps shows",
	"Statistics / Monitoring":                                      "what the server logs and counts",
	"Vacuuming":                                                    "VACUUM by hand, which we leave to autovacuum",
	"Resource Usage / Cost-Based Vacuum Delay":                     "VACUUM by hand",
	"Resource Usage / I/O":                                         "how a read or write is done",
	"Resource Usage / Memory":                                      "what an administrator grants a session: fewer rows in memory, the same rows",
	"Resource Usage / Asynchronous Behavior":                       "how a read or write is done, and by how many processes",
	"Resource Usage / Worker Processes":                            "by how many processes a plan is executed",
	"Query Tuning / Genetic Query Optimizer":                       "how a plan of 12 tables is searched; ours have fewer",
	"Query Tuning / Planner Cost Constants":                        "what a plan is thought to cost",
	"Query Tuning / Planner Method Configuration":                  "plans of statements that are not ours: joins of partitions, aggregates",
	"Statistics / Cumulative Query and Index Statistics":           "what the server counts",
	"Statistics / Query and Index Statistics Collector":            "what the server counts",
	"Developer Options":                                            "no setting for a server with data",
	"Customized Options":                                           "of an extension",
	"Write-Ahead Log / Settings":                                   "how WAL is written",
	"Connections and Authentication / Authentication":              "how a new password is kept",
	"Client Connection Defaults / Shared Library Preloading":       "what an administrator loads into every session",
	"Connections and Authentication / Security and Authentication": "how a new password is kept",
}

// harmless are single settings that are not pinned.
var harmless = map[string]string{
	"application_name":                  "given when the session begins",
	"client_connection_check_interval":  "how soon the server sees that we are gone",
	"createrole_self_grant":             "what a role gets that creates roles, in its own sessions",
	"deadlock_timeout":                  "for superusers to set; only the waits for locks are compared with it, and they ask for it",
	"default_statistics_target":         "how many rows ANALYZE samples",
	"default_text_search_config":        "no expression of an index or of a generated column may read it",
	"default_toast_compression":         "how a value is stored",
	"dynamic_library_path":              "for superusers to set",
	"event_triggers":                    "for superusers to set, against a broken event trigger",
	"extension_control_path":            "for superusers to set",
	"file_copy_method":                  "how CREATE DATABASE copies",
	"gin_pending_list_limit":            "how an index is stored",
	"icu_validation_level":              "how loud CREATE COLLATION is",
	"lc_messages":                       "errors are known by SQLSTATE",
	"lo_compat_privileges":              "large objects are not carried",
	"operator_precedence_warning":       "a warning",
	"recursive_worktable_factor":        "what a plan is thought to cost",
	"session_replication_role":          "set where a session is to be a replica; captures fire in every role",
	"synchronize_seqscans":              "the order of rows that have none",
	"temp_file_limit":                   "for superusers to set; the plan reads it",
	"timezone_abbreviations":            "times are written as numbers",
	"ssl_renegotiation_limit":           "does nothing any more",
	"transaction_deferrable":            "of a transaction that has begun",
	"transaction_isolation":             "of a transaction that has begun",
	"transaction_read_only":             "of a transaction that has begun",
	"vacuum_cleanup_index_scale_factor": "VACUUM by hand",
	"vacuum_failsafe_age":               "VACUUM by hand",
	"vacuum_freeze_min_age":             "VACUUM by hand",
	"vacuum_freeze_table_age":           "VACUUM by hand",
	"vacuum_multixact_failsafe_age":     "VACUUM by hand",
	"vacuum_multixact_freeze_min_age":   "VACUUM by hand",
	"vacuum_multixact_freeze_table_age": "VACUUM by hand",
	"wal_sender_timeout":                "no session of ours is a replication's",
}

// value are hostile ones that cannot be told from pg_settings.
var value = map[string]string{
	"search_path": "public", "datestyle": "'SQL, DMY'", "timezone": "'Asia/Kolkata'", "client_encoding": "LATIN1",
	"lc_monetary": "'POSIX'", "lc_numeric": "'POSIX'", "lc_time": "'POSIX'", "default_tablespace": "pg_default", "temp_tablespaces": "pg_default",
	"default_table_access_method": "heap", // there is no other
	"tcp_keepalives_idle":         "1", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "1", "tcp_user_timeout": "60000",
	"client_min_messages": "error", "synchronous_commit": "off", "restrict_nonsystem_relation_kind": "'view, foreign-table'",
}

// makeHostile gives the database another value of every setting that our sessions pin, and names
// those that they neither pin nor need to: what a new version brings must be thought of.
func makeHostile(t *testing.T, admin *pgx.Conn, pinned map[string]string) {
	t.Helper()
	rows, err := admin.Query(testContext(t), "SELECT name, category, vartype, min_val, max_val, reset_val, enumvals FROM pg_settings WHERE context IN ('user', 'superuser')")
	if err != nil {
		t.Fatal(err)
	}
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		t.Fatal(err)
	}
	db, set := show(t, admin, "SELECT current_database()::text"), 0
	for _, s := range settings {
		want, is := pinned[strings.ToLower(s.Name)]
		switch {
		case !is:
			if harmless[s.Name] == "" && !s.harmless() {
				t.Errorf("%s (%s) is neither pinned nor known to be harmless: what does it do to a session of ours?", s.Name, s.Category)
			}
			continue
		case strings.EqualFold(s.Name, "session_replication_role"):
			continue // asked for, not pinned
		}
		run(t, admin, "ALTER DATABASE "+db+" SET "+pgx.Identifier{s.Name}.Sanitize()+" = "+s.hostile(t, want))
		set++
	}
	if set < 50 {
		t.Errorf("%d settings only are hostile", set)
	}
}

// harmless reports whether the setting is of a kind that is.
func (s setting) harmless() bool {
	for kind := range harmlessKinds {
		if s.Category == kind || strings.HasPrefix(s.Category, kind+" / ") {
			return true
		}
	}
	return false
}

// hostile is a value that is not the wanted one, as SQL.
func (s setting) hostile(t *testing.T, want string) string {
	t.Helper()
	if v, known := value[strings.ToLower(s.Name)]; known {
		return v
	}
	switch {
	case s.Vartype == "bool" && want == "on":
		return "off"
	case s.Vartype == "bool":
		return "on"
	case s.Vartype == "enum":
		return "'" + s.Enumvals[slices.IndexFunc(s.Enumvals, func(v string) bool { return v != want })] + "'"
	case s.Vartype == "string":
		t.Errorf("no hostile value is known for %s", s.Name)
		return "DEFAULT"
	case *s.MaxVal != want:
		return *s.MaxVal
	}
	return *s.MinVal
}
