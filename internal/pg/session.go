package pg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// pinned are the settings that change what bytes a value has, what a query sees, or how long a
// session lives (PostgreSQL docs, chapter 19). Those that a server does not know are left out.
var pinned = [][2]string{
	{"search_path", "pg_catalog"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
	{"array_nulls", "on"},
	{"lc_monetary", "C"},
	{"lc_numeric", "C"},
	{"lc_time", "C"},
	{"xmloption", "content"},
	{"xmlbinary", "base64"},
	{"standard_conforming_strings", "on"},
	{"backslash_quote", "safe_encoding"},
	{"escape_string_warning", "off"},
	{"quote_all_identifiers", "off"},
	{"transform_null_equals", "off"},
	{"row_security", "off"},
	{"gin_fuzzy_search_limit", "0"},

	{"enable_tidscan", "on"},
	{"enable_seqscan", "on"},
	{"enable_hashjoin", "on"},
	{"enable_mergejoin", "on"},
	{"enable_nestloop", "on"},
	{"enable_indexscan", "on"},
	{"enable_bitmapscan", "on"},
	{"enable_hashagg", "on"},
	{"enable_sort", "on"},
	{"enable_indexonlyscan", "on"},
	{"enable_material", "on"},
	{"enable_partition_pruning", "on"},
	{"constraint_exclusion", "partition"},
	{"from_collapse_limit", "8"},
	{"join_collapse_limit", "8"},
	{"geqo", "on"},
	{"geqo_threshold", "12"},
	{"cursor_tuple_fraction", "0.1"},
	{"plan_cache_mode", "auto"},
	// A short query must not start processes; these are the server's own costs of that, and sizes in pages.
	{"parallel_setup_cost", "1000"},
	{"parallel_tuple_cost", "0.1"},
	{"min_parallel_table_scan_size", "1024"},
	{"min_parallel_index_scan_size", "64"},
	{"force_parallel_mode", "off"},
	{"debug_parallel_query", "off"},
	{"jit", "off"}, // short queries over deltas of unknown size: compiling costs more than it gives

	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"transaction_timeout", "0"},
	// A runner behind a dead network must not keep its locks for the two hours that systems default to.
	{"tcp_keepalives_idle", "10"},
	{"tcp_keepalives_interval", "5"},
	{"tcp_keepalives_count", "3"},
	{"tcp_user_timeout", "0"}, // a short one would end a session whose other end is held up

	{"default_tablespace", ""},
	{"temp_tablespaces", ""},
	{"default_table_access_method", "heap"},
	{"default_with_oids", "off"},
	{"check_function_bodies", "off"},
	{"restrict_nonsystem_relation_kind", ""}, // materialized views are filled from views
	{"client_min_messages", "warning"},
	{"exit_on_error", "off"}, // a lock that was not had in time must not end the session
}

// knownSQL lists which of some settings this server knows and lets a role set.
const knownSQL = `
SELECT pg_catalog.lower(name) FROM pg_catalog.pg_settings
 WHERE pg_catalog.lower(name) OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]) AND context OPERATOR(pg_catalog.=) 'user'`

// durably leaves a synchronous_commit alone that promises more than ours.
const durably = `SELECT pg_catalog.set_config('synchronous_commit', 'on', false) WHERE pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.<>) 'remote_apply'`

// knows remembers, by version, which settings a side's servers have: asking takes a server longer
// than all that is then set.
type knows struct {
	sync.Mutex
	byVersion map[string]map[string]bool
}

func (k *knows) of(ctx context.Context, conn *pgx.Conn) (map[string]bool, error) {
	k.Lock()
	defer k.Unlock()
	version := conn.PgConn().ParameterStatus("server_version")
	if has := k.byVersion[version]; has != nil {
		return has, nil
	}
	names := []string{"client_encoding", "default_transaction_read_only", "lock_timeout", "synchronous_commit"}
	for _, p := range pinned {
		names = append(names, strings.ToLower(p[0]))
	}
	rows, err := conn.Query(ctx, knownSQL, pgx.QueryExecModeExec, names)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool, len(found))
	for _, name := range found {
		has[name] = true
	}
	if k.byVersion == nil {
		k.byVersion = map[string]map[string]bool{}
	}
	k.byVersion[version] = has
	return has, nil
}

// unhurried comes before knownSQL, which a role's statement_timeout may end, and which a role's
// jit_above_cost of 0 may make take seconds.
func unhurried(conn *pgx.Conn) string {
	const always = "SET statement_timeout = 0"
	if major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), "."); major == "10" {
		return always // jit came with 11
	}
	return always + "; SET jit = off"
}

func (s *Server) pin(ctx context.Context, conn *pgx.Conn, use Use) error {
	if use.Marked && s.cfg.Mark == "" {
		return errors.New("a marked session needs the run's mark")
	}
	if err := conn.PgConn().Exec(ctx, unhurried(conn)).Close(); err != nil {
		return fmt.Errorf("pinning the session's timeout: %w", err)
	}
	has, err := s.known.of(ctx, conn)
	if err != nil {
		return fmt.Errorf("reading which settings the %s has: %w", s.cfg.Side, err)
	}
	if err := conn.PgConn().Exec(ctx, s.pins(use, has)).Close(); err != nil {
		return fmt.Errorf("pinning the session's settings: %w", err)
	}
	if use.Replica {
		return s.becomeReplica(ctx, conn)
	}
	return nil
}

// pins is one script, so that it costs one round trip. SET would quote lists anew.
func (s *Server) pins(use Use, has map[string]bool) string {
	var calls []string
	set := func(name, value string) {
		if has[strings.ToLower(name)] {
			calls = append(calls, fmt.Sprintf("pg_catalog.set_config('%s', '%s', false)", name, value))
		}
	}
	for _, p := range pinned {
		set(p[0], p[1])
	}
	set("client_encoding", cmp.Or(use.Encoding, "UTF8"))
	set("default_transaction_read_only", onOff(use.ReadOnly || s.readOnly))
	set("lock_timeout", strconv.FormatInt(use.LockTimeout.Milliseconds(), 10))
	if use.AsyncCommit {
		set("synchronous_commit", "off")
	}
	script := "SELECT " + strings.Join(calls, ", ")
	if !use.AsyncCommit {
		script += "; " + durably
	}
	if use.Marked {
		script += "; SELECT pg_catalog.set_config('pgrunbook.mark', " + Literal(s.cfg.Mark) + ", false)"
	}
	return script
}

// becomeReplica silences ordinary triggers and foreign keys for this session. A role without the
// right uses the helper function that managed clouds offer (Amazon RDS) or that a DBA made.
func (s *Server) becomeReplica(ctx context.Context, conn *pgx.Conn) error {
	if s.cfg.ReplicaRoleFunction == "" {
		if _, err := conn.Exec(ctx, "SET session_replication_role = replica"); err != nil {
			return fmt.Errorf("setting session_replication_role: %w", err)
		}
		return nil
	}
	fn, err := ParseIdentifier(s.cfg.ReplicaRoleFunction)
	if err != nil {
		return fmt.Errorf("reading replica_role_function: %w", err)
	}
	if _, err := conn.Exec(ctx, "SELECT "+fn.Sanitize()+"('replica')"); err != nil {
		return fmt.Errorf("calling %s: %w", s.cfg.ReplicaRoleFunction, err)
	}
	var role string
	if err := conn.QueryRow(ctx, "SHOW session_replication_role").Scan(&role); err != nil {
		return fmt.Errorf("reading session_replication_role: %w", err)
	}
	if role != "replica" {
		return fmt.Errorf("%s left session_replication_role at %s", s.cfg.ReplicaRoleFunction, role)
	}
	return nil
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
