package pg

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// environ serialises the parsing of connection strings with changed PG* variables.
var environ sync.Mutex

// location variables say where files are, not which server is meant: they count for both sides.
var locations = []string{"PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR"}

// ignoredByDriver are libpq's variables that the driver does not read
// (https://www.postgresql.org/docs/current/libpq-envars.html).
var ignoredByDriver = []string{
	"PGHOSTADDR", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGGSSENCMODE",
	"PGGSSLIB", "PGGSSDELEGATION", "PGKRBSRVNAME", "PGLOADBALANCEHOSTS", "PGCLIENTENCODING", "PGREQUIREPEER", "PGREQUIRESSL", "PGDATESTYLE", "PGGEQO",
}

// parseInEnv parses with the PG* variables in sight or not. Two databases share one environment:
// a variable that silently counted for both could make source and target the same server.
func parseInEnv(dsn string, inherit bool) (*pgx.ConnConfig, error) {
	environ.Lock()
	defer environ.Unlock()
	if !inherit {
		for _, name := range connectionVariables() {
			value := os.Getenv(name)
			if err := os.Unsetenv(name); err != nil {
				return nil, fmt.Errorf("hiding %s: %w", name, err)
			}
			defer func() { _ = os.Setenv(name, value) }()
		}
	}
	return pgx.ParseConfig(dsn)
}

// connectionVariables lists the libpq variables that are set, without locations.
func connectionVariables() []string {
	var names []string
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if isLibpqVariable(name) && value != "" && !slices.Contains(locations, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// isLibpqVariable tells PGHOST from PGRUNBOOK_PG_BIN_DIRS and PGDATA.
func isLibpqVariable(name string) bool {
	switch name {
	case "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGAPPNAME", "PGCONNECT_TIMEOUT", "PGSSLMODE", "PGSSLKEY",
		"PGSSLCERT", "PGSSLCERTMODE", "PGSSLSNI", "PGSSLROOTCERT", "PGSSLPASSWORD", "PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS",
		"PGSERVICE", "PGTZ", "PGOPTIONS", "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION", "PGCHANNELBINDING", "PGREQUIREAUTH":
		return true
	}
	return slices.Contains(ignoredByDriver, name) || slices.Contains(locations, name)
}

// envWarnings names variables that somebody set and that do not count.
func envWarnings(cfg Config) []string {
	var out []string
	set := connectionVariables()
	if !cfg.InheritEnv {
		if len(set) > 0 {
			out = append(out, fmt.Sprintf("%s is set in the environment and does not count for the %s; inherit_env = true in its block changes that", strings.Join(set, ", "), cfg.Side))
		}
		return out
	}
	for _, name := range set {
		if slices.Contains(ignoredByDriver, name) {
			out = append(out, fmt.Sprintf("%s is set in the environment and not supported: it does not count", name))
		}
	}
	return out
}

// passfileWarning finds a password file that others can read. libpq ignores such a file; the
// driver does not look.
func passfileWarning() []string {
	path := os.Getenv("PGPASSFILE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil
		}
		path = filepath.Join(home, ".pgpass")
	}
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return []string{fmt.Sprintf("the password file %s can be read by others (mode %04o), and psql would ignore it: chmod 600", path, info.Mode().Perm())}
}
