package pg

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

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

	{"default_tablespace", ""},
	{"temp_tablespaces", ""},
	{"default_table_access_method", "heap"},
	{"default_with_oids", "off"},
	{"check_function_bodies", "off"},
	{"client_min_messages", "warning"},
	{"exit_on_error", "off"}, // a lock that was not had in time must not end the session
}

// pinSQL sets what this server knows and lets a role set, in one round trip. A synchronous_commit
// that promises more than ours stays.
const pinSQL = `
SELECT pg_catalog.set_config(s.name, w.value, false)
  FROM (SELECT ($1::pg_catalog.text[])[i] AS name, ($2::pg_catalog.text[])[i] AS value
          FROM pg_catalog.generate_subscripts($1::pg_catalog.text[], 1) AS i) AS w
  JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) pg_catalog.lower(w.name)
 WHERE s.context OPERATOR(pg_catalog.=) 'user' AND s.setting OPERATOR(pg_catalog.<>) w.value
   AND NOT (s.name OPERATOR(pg_catalog.=) 'synchronous_commit' AND w.value OPERATOR(pg_catalog.=) 'on' AND s.setting OPERATOR(pg_catalog.=) 'remote_apply')`

// unhurried comes before pinSQL, which a role's statement_timeout may end, and which a role's
// jit_above_cost of 0 may make take seconds.
func unhurried(conn *pgx.Conn) string {
	const always = "SET statement_timeout = 0"
	if major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), "."); major == "10" {
		return always // jit came with 11
	}
	return always + "; SET jit = off"
}

func (s *Server) pin(ctx context.Context, conn *pgx.Conn, use Use) error {
	if err := conn.PgConn().Exec(ctx, unhurried(conn)).Close(); err != nil {
		return fmt.Errorf("pinning the session's timeout: %w", err)
	}
	names, values := make([]string, 0, len(pinned)+4), make([]string, 0, len(pinned)+4)
	add := func(name, value string) { names, values = append(names, name), append(values, value) }
	for _, p := range pinned {
		add(p[0], p[1])
	}
	encoding := use.Encoding
	if encoding == "" {
		encoding = "UTF8"
	}
	add("client_encoding", encoding)
	add("default_transaction_read_only", onOff(use.ReadOnly || s.readOnly))
	add("lock_timeout", strconv.FormatInt(use.LockTimeout.Milliseconds(), 10))
	add("synchronous_commit", onOff(!use.AsyncCommit))
	if _, err := conn.Exec(ctx, pinSQL, names, values); err != nil {
		return fmt.Errorf("pinning the session's settings: %w", err)
	}
	if use.Marked && s.cfg.Mark == "" {
		return errors.New("a marked session needs the run's mark")
	}
	if use.Marked {
		if _, err := conn.Exec(ctx, "SELECT pg_catalog.set_config('pgrunbook.mark', $1, false)", s.cfg.Mark); err != nil {
			return fmt.Errorf("marking the session: %w", err)
		}
	}
	if use.Replica {
		return s.becomeReplica(ctx, conn)
	}
	return nil
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
