package pg

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Identity tells one database of one cluster from every other, and one life of it from the next.
type Identity struct {
	SystemIdentifier string // empty where the role may not read it; survives a physical copy
	Database         string
	DatabaseOID      uint32
	Major            int
	Version          string    // as the server gives it: "15.20 (Debian 15.20-1.pgdg12+1)"
	VersionNum       int       // 150020
	StartedAt        time.Time // pg_postmaster_start_time
	Timeline         int64     // 0 where it cannot be read
	InRecovery       bool
	Address          string // host:port/database without user or password
}

// identitySQL runs before 10.0's successors too; functions that a role may not call are asked
// only after has_function_privilege said yes, so that no transaction of the caller's fails.
const identitySQL = `
SELECT pg_catalog.current_database()::pg_catalog.text, d.oid, pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
       pg_catalog.current_setting('server_version'), pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_is_in_recovery(),
       pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'),
       pg_catalog.has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE'),
       NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.has_function_privilege('pg_catalog.pg_walfile_name(pg_lsn)', 'EXECUTE')
           AND pg_catalog.has_function_privilege('pg_catalog.pg_current_wal_insert_lsn()', 'EXECUTE')
  FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()`

// Identity reads who answers at the other end of conn.
func (s *Server) Identity(ctx context.Context, conn *pgx.Conn) (Identity, error) {
	id := Identity{Address: s.Address()}
	var system, checkpoint, walfile bool
	err := conn.QueryRow(ctx, identitySQL).Scan(&id.Database, &id.DatabaseOID, &id.VersionNum, &id.Version, &id.StartedAt,
		&id.InRecovery, &system, &checkpoint, &walfile)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the %s's identity: %w", s.cfg.Side, err)
	}
	id.Major = id.VersionNum / 10000
	id.StartedAt = id.StartedAt.UTC()
	if system {
		err = conn.QueryRow(ctx, "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()").Scan(&id.SystemIdentifier)
		if err = unlessUnsupported(err); err != nil {
			return Identity{}, fmt.Errorf("reading the %s's system identifier: %w", s.cfg.Side, err)
		}
	}
	if id.Timeline, err = timeline(ctx, conn, walfile, checkpoint); err != nil {
		return Identity{}, fmt.Errorf("reading the %s's timeline: %w", s.cfg.Side, err)
	}
	return id, nil
}

// timeline prefers the name of the current WAL file, which changes with a promotion at once; the
// control file's value waits for the next checkpoint.
func timeline(ctx context.Context, conn *pgx.Conn, walfile, checkpoint bool) (tli int64, err error) {
	switch {
	case walfile:
		err = conn.QueryRow(ctx, `SELECT ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int8`, pgx.QueryExecModeExec).Scan(&tli)
	case checkpoint:
		err = conn.QueryRow(ctx, "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()").Scan(&tli)
	}
	return tli, unlessUnsupported(err)
}

// unlessUnsupported forgives servers that speak the protocol but lack a function or forbid it.
func unlessUnsupported(err error) error {
	switch SQLState(err) {
	case "0A000", "42501", "42883":
		return nil
	}
	return err
}

// Version reads the server's version: 150020 for 15.20.
func Version(ctx context.Context, conn *pgx.Conn) (int, error) {
	var num int
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4").Scan(&num); err != nil {
		return 0, fmt.Errorf("reading the server's version: %w", err)
	}
	return num, nil
}

// VersionText shortens "15.20 (Debian 15.20-1)" to "15.20".
func (i Identity) VersionText() string {
	short, _, _ := strings.Cut(i.Version, " ")
	return short
}
