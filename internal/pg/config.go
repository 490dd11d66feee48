package pg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config says how to reach one side. It may hold secrets; it has no String method on purpose and
// must not be printed.
type Config struct {
	Side                string // "source" or "target": for messages and application_name
	URL                 string
	Service             string
	InheritEnv          bool          // PG* variables fill what URL and Service leave out
	PasswordCommand     []string      // run before each connection; its first line of output is the password
	PasswordTimeout     time.Duration // of PasswordCommand. Defaults to 30s
	Dir                 string        // working directory of PasswordCommand
	ReplicaRoleFunction string        // "schema.function"; empty means SET session_replication_role
	RunID               string        // part of application_name, so that a new runner finds what a dead one left
	Mark                string        // the run's token; sessions opened with Use.Marked carry it in pgrunbook.mark
	Timeline            int64         // that every session must be on; 0 is any
}

// connectTimeout is used where the connection string has no connect_timeout.
const connectTimeout = 10 * time.Second

// parseConfig makes a connection config without the connection string, which can hold a password,
// ever reaching an error text. The warnings name what was left out of it.
func parseConfig(cfg Config) (*pgx.ConnConfig, []string, error) {
	dsn := cfg.URL
	if cfg.Service != "" {
		if dsn != "" {
			return nil, nil, fmt.Errorf("the %s block has both url and service: remove one", cfg.Side)
		}
		dsn = "service=" + keywordValue(cfg.Service)
	}
	if dsn == "" && !cfg.InheritEnv {
		return nil, nil, fmt.Errorf("the %s block names no server: set url, service or inherit_env", cfg.Side)
	}
	if strayAt(dsn) {
		return nil, nil, fmt.Errorf("reading the %s's connection string: %w", cfg.Side, errStrayAt)
	}
	conf, err := parseInEnv(dsn, cfg.InheritEnv)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the %s's connection string: %w", cfg.Side, parseFailure(err))
	}
	warnings, err := settleKeywords(conf)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the %s's connection string: %w", cfg.Side, err)
	}
	warnings = append(warnings, envWarnings(cfg)...)
	warnings = append(warnings, passfileWarning()...)
	// Statements are sent without a server-side name, so that DDL in the middle of a run cannot
	// make a cached plan fail.
	conf.DefaultQueryExecMode = pgx.QueryExecModeExec
	conf.StatementCacheCapacity, conf.DescriptionCacheCapacity = 0, 0
	if conf.ConnectTimeout == 0 {
		conf.ConnectTimeout = connectTimeout
	}
	return conf, warnings, nil
}

var errStrayAt = errors.New(`it has an "@" that is not percent-encoded (write %40)`)

// strayAt finds a URL whose password holds an unescaped @ or /: what follows it would be taken for
// a host or a database, which are no secrets.
func strayAt(dsn string) bool {
	_, rest, isURL := strings.Cut(dsn, "://")
	if !isURL || strings.ContainsAny(dsn[:len(dsn)-len(rest)-len("://")], "= '") {
		return false
	}
	rest, _, _ = strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	return strings.Count(authority, "@") > 1 || strings.Contains(path, "@")
}

// keywordValue quotes a value of a keyword=value connection string
// (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE).
func keywordValue(s string) string {
	return `'` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + `'`
}

// Complaints whose causes name files and line numbers only.
const (
	unreadService = "failed to read service"
	unusableTLS   = "failed to configure TLS"
)

// parseFailures are the driver's complaints by how they begin. Their own text is not used: it may
// quote a piece of the connection string, and in a malformed one that piece can be the password.
var parseFailures = [][2]string{
	{"failed to parse as URL", "it is no valid postgresql:// URL; special characters in user and password must be percent-encoded"},
	{"failed to parse as keyword/value", `it is neither a postgresql:// URL nor a list of keyword=value; values with spaces stand in single quotes`},
	{unreadService, "its service cannot be read"},
	{unusableTLS, "its TLS settings (sslmode, sslrootcert, sslcert, sslkey) cannot be used"},
	{"invalid port", "its port is not a number"},
	{"could not match", "it names more ports than hosts, or fewer"},
	{"invalid sslcertmode", "its sslcertmode is invalid"},
	{"invalid connect_timeout", "its connect_timeout is invalid"},
	{"unknown target_session_attrs", "its target_session_attrs is invalid"},
	{"invalid min_protocol_version", "its min_protocol_version is invalid"},
	{"min_protocol_version", "its min_protocol_version is above max_protocol_version"},
	{"invalid max_protocol_version", "its max_protocol_version is invalid"},
	{"unknown channel_binding", "its channel_binding is invalid"},
	{"invalid require_auth", "its require_auth is invalid"},
}

// parseFailure says in our words why a connection string was refused.
func parseFailure(err error) error {
	var parse interface{ Unwrap() error }
	if !errors.As(err, &parse) {
		return errors.New("it cannot be parsed")
	}
	text := complaint(err)
	for _, f := range parseFailures {
		if !strings.HasPrefix(text, f[0]) {
			continue
		}
		cause := parse.Unwrap()
		if cause != nil && f[0] == unreadService {
			return fmt.Errorf("%s: %w (looked in %s)", f[1], cause, serviceFile())
		}
		if cause != nil && f[0] == unusableTLS {
			return fmt.Errorf("%s: %w", f[1], cause)
		}
		return errors.New(f[1])
	}
	return errors.New("it cannot be parsed")
}

// serviceFile is the file that the driver looks for services in
// (https://www.postgresql.org/docs/current/libpq-pgservice.html).
func serviceFile() string {
	if path := os.Getenv("PGSERVICEFILE"); path != "" {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "~/.pg_service.conf"
	}
	return filepath.Join(home, ".pg_service.conf")
}

// complaint cuts the connection string out of the driver's text, which is "cannot parse `STRING`:
// COMPLAINT (CAUSE)".
func complaint(err error) string {
	text := err.Error()
	return strings.TrimPrefix(text[strings.LastIndex(text, "`: ")+1:], ": ")
}
