package faults_test

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// typesSQL is a row of every kind of value that a setting can change on its way, and traffic on it.
//
//go:embed types.sql
var typesSQL string

// hostile are settings that a DBA can give a role, of those that change what bytes a value has, what
// a query sees, or how long a session lives. Those that a server lacks are left out.
var hostile = [][2]string{
	// Long enough for a slow machine to begin a session in, too short for anything that it then does.
	{"statement_timeout", "2s"},
	{"lock_timeout", "1ms"},
	{"idle_in_transaction_session_timeout", "2s"},
	{"idle_session_timeout", "2s"},
	{"transaction_timeout", "2s"},
	{"tcp_user_timeout", "2s"},
	{"tcp_keepalives_idle", "1"},
	{"tcp_keepalives_interval", "1"},
	{"tcp_keepalives_count", "1"},
	{"client_connection_check_interval", "10ms"},
	{"deadlock_timeout", "50ms"},
	{"DateStyle", "SQL, DMY"},
	{"IntervalStyle", "sql_standard"},
	{"TimeZone", "Australia/Lord_Howe"},
	{"timezone_abbreviations", "Australia"},
	{"extra_float_digits", "-15"},
	{"bytea_output", "escape"},
	{"array_nulls", "off"},
	{"xmloption", "document"},
	{"xmlbinary", "hex"},
	{"client_encoding", "LATIN1"},
	{"search_path", "evil, pg_catalog"},
	{"standard_conforming_strings", "off"},
	{"backslash_quote", "on"},
	{"escape_string_warning", "on"},
	{"quote_all_identifiers", "on"},
	{"transform_null_equals", "on"},
	{"row_security", "on"},
	{"gin_fuzzy_search_limit", "1"},
	{"enable_seqscan", "off"},
	{"enable_indexscan", "off"},
	{"enable_indexonlyscan", "off"},
	{"enable_bitmapscan", "off"},
	{"enable_tidscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_mergejoin", "off"},
	{"enable_nestloop", "off"},
	{"enable_hashagg", "off"},
	{"enable_sort", "off"},
	{"enable_material", "off"},
	{"constraint_exclusion", "on"},
	{"enable_partition_pruning", "off"},
	{"from_collapse_limit", "1"},
	{"join_collapse_limit", "1"},
	{"default_transaction_isolation", "serializable"},
	{"default_transaction_read_only", "on"},
	{"default_transaction_deferrable", "on"},
	{"session_replication_role", "replica"},
	{"synchronous_commit", "off"},
	{"check_function_bodies", "on"},
	{"plpgsql.extra_errors", "all"},
	{"plpgsql.variable_conflict", "use_column"},
	{"jit", "on"},
	{"default_toast_compression", "pglz"},
	{"client_min_messages", "debug1"},
	{"lc_messages", "C"},
	{"log_statement", "all"},
	{"log_min_duration_statement", "0"},
	{"log_parameter_max_length", "-1"},
	{"work_mem", "64kB"},
	{"maintenance_work_mem", "1MB"},
	{"temp_buffers", "800kB"},
	{"cursor_tuple_fraction", "0"},
	{"max_parallel_workers_per_gather", "8"},
	{"parallel_setup_cost", "0"},
	{"min_parallel_table_scan_size", "0"},
	{"force_parallel_mode", "on"},
	{"debug_parallel_query", "on"},
	{"vacuum_cost_delay", "1ms"},
	{"commit_delay", "100"},
	{"password_encryption", "md5"},
	{"plan_cache_mode", "force_generic_plan"},
	{"geqo_threshold", "2"},
	{"recursive_worktable_factor", "1000"},
	{"exit_on_error", "on"},
	{"debug_print_parse", "off"},
	{"lo_compat_privileges", "on"},
	{"createrole_self_grant", ""},
	{"event_triggers", "on"},
	{"restrict_nonsystem_relation_kind", "foreign-table"},
}

// hostileDatabase are those that the application can bear too.
var hostileDatabase = [][2]string{
	{"DateStyle", "German"},
	{"IntervalStyle", "iso_8601"},
	{"TimeZone", "America/St_Johns"},
	{"extra_float_digits", "0"},
	{"bytea_output", "escape"},
	{"array_nulls", "off"},
	{"plpgsql.extra_errors", "all"},
	{"xmloption", "document"},
	{"synchronous_commit", "off"},
	{"jit", "on"},
}

// evilSQL are functions and operators that a search_path could put before PostgreSQL's own.
const evilSQL = `
CREATE SCHEMA evil;
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''1999-01-01''';
CREATE FUNCTION evil.count(text) RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint';
CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass';
CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql AS 'SELECT ''same''';
CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint';
CREATE FUNCTION evil.txid_current() RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint';
CREATE FUNCTION evil.never(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never);
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.never);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.never);
CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.never);
CREATE VIEW evil.pg_class AS SELECT 0::oid AS oid, ''::name AS relname WHERE false;
CREATE VIEW evil.pg_attribute AS SELECT 0::oid AS attrelid WHERE false;`

// superusers makes a role on each shared server, gone when the test's databases are.
func superusers(t *testing.T) (roles [2]string) {
	t.Helper()
	from, to := majors(t)
	for side, major := range []int{from, to} {
		roles[side] = fmt.Sprintf("hostile_%d", side)
		run := func(sql string) {
			if err := testpg.Shared(t, major).Exec(context.Background(), "postgres", sql); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		}
		run("CREATE ROLE " + roles[side] + " SUPERUSER LOGIN")
		t.Cleanup(func() { run("DROP ROLE " + roles[side]) })
	}
	return roles
}

// switches gives every switch that is not named, turned the other way.
const switches = `
SELECT quote_ident(name) || ' = ' || CASE reset_val WHEN 'on' THEN 'off' ELSE 'on' END FROM pg_settings
 WHERE context IN ('user', 'superuser') AND vartype = 'bool' AND lower(name) <> ALL ($1) AND name NOT LIKE 'transaction%'
   AND (category LIKE 'Query Tuning%' OR category LIKE 'Client Connection Defaults%' OR category LIKE 'Version and Platform%')`

func names(settings [][2]string) (names []string) {
	for _, s := range settings {
		names = append(names, strings.ToLower(s[0]))
	}
	return names
}

// poison has the program come as a role with every hostile setting, and says how many there are.
func (r *rig) poison(side int, role string) (set int) {
	r.t.Helper()
	ctx := r.t.Context()
	direct := cond(side == 0, r.source, r.target)
	conn, err := pgx.Connect(ctx, direct)
	r.must(err)
	defer func() { _ = conn.Close(ctx) }()
	name, db := pgx.Identifier{role}.Sanitize(), pgx.Identifier{conn.Config().Database}.Sanitize()
	exec := func(sql string) {
		r.t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			r.t.Fatalf("%s: %v", sql, err)
		}
	}
	if side == 0 {
		_, err = conn.PgConn().Exec(ctx, evilSQL).ReadAll()
		r.must(err)
	}
	known := func(setting string) bool {
		var yes bool
		r.must(conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_settings WHERE lower(name) = lower($1) AND context IN ('user', 'superuser')) OR $1 LIKE 'plpgsql.%'", setting).Scan(&yes))
		return yes
	}
	for _, s := range hostile {
		if known(s[0]) {
			value := "'" + s[1] + "'"
			if s[0] == "search_path" {
				value = s[1]
			}
			exec(fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET %s = %s", name, db, s[0], value))
			set++
		}
	}
	// And what else can be switched, so that a version's new ways to plan a query are among them.
	rows, err := conn.Query(ctx, switches, names(hostile))
	r.must(err)
	others, err := pgx.CollectRows(rows, pgx.RowTo[string])
	r.must(err)
	for _, s := range others {
		exec(fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET %s", name, db, s))
		set++
	}
	for _, s := range hostileDatabase {
		if known(s[0]) {
			exec(fmt.Sprintf("ALTER DATABASE %s SET %s = '%s'", db, s[0], s[1]))
			set++
		}
	}
	for _, locale := range []string{"de_DE.UTF-8", "en_US.UTF-8", "C"} { // what this machine has
		if _, err := conn.Exec(ctx, fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET lc_monetary = '%s'", name, db, locale)); err == nil {
			break
		}
	}
	u, err := url.Parse(direct)
	r.must(err)
	u.User = url.User(role)
	r.via[side] = u.String()
	// The fault has fired where a plain session of that role cannot do the simplest thing.
	if poor, err := pgx.Connect(ctx, r.via[side]); err == nil {
		_, err = poor.Exec(ctx, "SELECT pg_sleep(4)")
		_ = poor.Close(ctx)
		if err == nil {
			r.t.Fatal("the settings do nothing to a session")
		}
	}
	return set
}

// TestF18F50HostileSettings makes a whole migration under every setting that could change it, with
// values of every type, and writes on them meanwhile.
func TestF18F50HostileSettings(t *testing.T) {
	t.Parallel()
	roles := superusers(t)
	r := newRig(t)
	r.sql(r.source, typesSQL)
	r.edit(`"ledger.*"`, `"ledger.*", "kinds.*"`)
	for side := range 2 {
		n := r.poison(side, roles[side])
		t.Logf("%d settings on side %d", n, side)
	}
	before := r.dump(r.source)
	// Sessions are silent for longer than the settings let them, in a transaction and outside.
	const slow = "load.copied@2:sleep=3s;load.scrubbed@1:sleep=3s;pass.staged@1:sleep=3s"
	if o := r.run(slow, "apply", "--auto-approve", "--until", "copy"); o.code != 0 {
		t.Errorf("a load that is slow: %s\n%s", o, o.text)
	}
	r.sql(r.source, "SELECT kinds.change()")
	if o := r.run(slow, "apply", "--auto-approve", "--until", "verify"); o.code != 0 {
		t.Errorf("a pass that is slow: %s\n%s", o, o.text)
	}
	r.sql(r.source, "SELECT kinds.change()")
	r.finally("apply", "--auto-approve", "--until", "arm")
	r.finally(abortArgs...)
	if after := r.dump(r.source); after != before {
		t.Errorf("abort left the source different:\n%s", firstDifference(before, after))
	}
	p := r.start("", applyArgs...)
	if o := p.end(); o.code != 0 {
		r.acceptable(o)
		r.finally(applyArgs...)
	}
	r.moved(0, 1)
	r.writing(1)
	r.turn(1)
	r.sql(r.target, "SELECT kinds.change()")
	r.finally(rollbackArgs...)
	r.moved(1, 0)
	r.writing(0)
	r.balance(r.source)
}
