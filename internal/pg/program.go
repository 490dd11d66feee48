package pg

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// programPinned are settings that a DBA may have given the role or the database and that end or
// refuse a session of pg_dump and pg_restore, or change what it writes. They set some themselves,
// but not before their first statement, and not those of their newer servers.
var programPinned = [][2]string{
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"transaction_timeout", "0"},
	{"tcp_keepalives_idle", "10"},
	{"tcp_keepalives_interval", "5"},
	{"tcp_keepalives_count", "3"},
	{"tcp_user_timeout", "0"},
	{"exit_on_error", "off"},
	{"search_path", "pg_catalog"},
	{"standard_conforming_strings", "on"},
	{"backslash_quote", "safe_encoding"},
	{"quote_all_identifiers", "off"},
	{"check_function_bodies", "off"},
	{"restrict_nonsystem_relation_kind", ""}, // pg_dump sets its own
	{"client_min_messages", "warning"},
	{"default_tablespace", ""},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
	{"array_nulls", "on"},
	{"TimeZone", "UTC"},
	{"lc_monetary", "C"}, // money: neither program sets it, and the other side would read another number
	{"lc_numeric", "C"},
	{"lc_time", "C"},
	{"xmloption", "content"},
	{"xmlbinary", "base64"},
	{"transform_null_equals", "off"},
	{"gin_fuzzy_search_limit", "0"},
	{"row_security", "off"},
}

// ProgramOptions adds programPinned, as far as the server has these settings, to a program's own
// options. A pooler that keeps sessions together need not let startup options through.
func (s *Server) ProgramOptions(ctx context.Context, options map[string]string) (map[string]string, error) {
	conn, err := s.Connect(ctx, Use{Name: "settings", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer closeQuietly(ctx, conn)
	if pooled, _ := s.proxy.found(); pooled {
		return nil, nil
	}
	all, names := map[string]string{}, make([]string, 0, len(programPinned))
	for _, p := range programPinned {
		names = append(names, p[0])
	}
	rows, err := conn.Query(ctx, "SELECT name FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]) AND context OPERATOR(pg_catalog.=) 'user'", names)
	if err != nil {
		return nil, fmt.Errorf("reading which settings the %s has: %w", s.cfg.Side, err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading which settings the %s has: %w", s.cfg.Side, err)
	}
	for _, p := range programPinned {
		if slices.Contains(known, p[0]) {
			all[p[0]] = p[1]
		}
	}
	maps.Copy(all, options)
	return all, nil
}
