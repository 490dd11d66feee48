package pg

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// pinned are the settings that change what bytes a value has, what a query sees, or how long a
// session lives (PostgreSQL docs, chapter 19). Those that a server does not know are left out.
var pinned = [][2]string{
	{"search_path", "pg_catalog"},
	{"client_encoding", "UTF8"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
	{"array_nulls", "on"},
	{"lc_monetary", "C"},
	{"xmloption", "content"},
	{"standard_conforming_strings", "on"},
	{"escape_string_warning", "off"},
	{"quote_all_identifiers", "off"},
	{"row_security", "off"},
	{"enable_tidscan", "on"},
	{"enable_seqscan", "on"},
	{"enable_hashjoin", "on"},
	{"enable_indexscan", "on"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"transaction_timeout", "0"},
	{"default_tablespace", ""},
	{"temp_tablespaces", ""},
	{"check_function_bodies", "off"},
	{"client_min_messages", "warning"},
	{"xmlbinary", "base64"},
	{"gin_fuzzy_search_limit", "0"},
	{"transform_null_equals", "off"},
}

// pinSQL sets what this server knows, in one round trip.
const pinSQL = `
SELECT pg_catalog.set_config(s.name, w.value, false)
  FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (name, value)
  JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) pg_catalog.lower(w.name)
 WHERE s.context IN ('user', 'superuser') AND s.setting IS DISTINCT FROM w.value`

func (s *Server) pin(ctx context.Context, conn *pgx.Conn, use Use) error {
	names, values := make([]string, 0, len(pinned)+4), make([]string, 0, len(pinned)+4)
	add := func(name, value string) { names, values = append(names, name), append(values, value) }
	for _, p := range pinned {
		add(p[0], p[1])
	}
	add("default_transaction_read_only", onOff(use.ReadOnly))
	add("lock_timeout", strconv.FormatInt(use.LockTimeout.Milliseconds(), 10))
	if use.AsyncCommit {
		add("synchronous_commit", "off")
	} else {
		add("synchronous_commit", "on")
	}
	if _, err := conn.Exec(ctx, pinSQL, names, values); err != nil {
		return fmt.Errorf("pinning the session's settings: %w", err)
	}
	if use.Marked && s.cfg.Mark != "" {
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
		return err
	}
	if _, err := conn.Exec(ctx, "SELECT "+fn.Sanitize()+"('replica')"); err != nil {
		return fmt.Errorf("calling %s: %w", s.cfg.ReplicaRoleFunction, err)
	}
	var role string
	if err := conn.QueryRow(ctx, "SHOW session_replication_role").Scan(&role); err != nil {
		return err
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
