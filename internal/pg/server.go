package pg

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Server opens sessions to one side. It is safe for concurrent use.
type Server struct {
	cfg      Config
	conf     *pgx.ConnConfig
	warnings []string
	token    string // tells this process's sessions from another's of the same run
	watch    *watch
	known    *knows
	wants    *wants
	explain  func(*MovedError) error // nil: a MovedError says it itself
	readOnly bool                    // every session is one that cannot write

	proxy *proxy // of every copy that goes to the same address
}

// Use says what a session is for. The zero value is a plain read-write session with pinned
// settings that our triggers treat like an application's.
type Use struct {
	Name        string        // what it does: "pass", "load 3"; part of application_name. Names of worker processes begin with "worker"
	ReadOnly    bool          // default_transaction_read_only = on
	Replica     bool          // session_replication_role = replica
	Marked      bool          // our capture and gate triggers let it pass
	Hold        bool          // a silent network is noticed within 3 s; not for bulk data
	LockTimeout time.Duration // 0 means none; keep it below deadlock_timeout where application tables are touched
	AsyncCommit bool          // synchronous_commit = off; otherwise on
	Encoding    string        // client_encoding. Defaults to UTF8; SQL_ASCII where both databases are SQL_ASCII
}

// New prepares a side; it does not connect.
func New(cfg Config) (*Server, error) {
	conf, warnings, err := parseConfig(cfg)
	if err != nil {
		return nil, err
	}
	var token [3]byte
	if _, err := rand.Read(token[:]); err != nil {
		return nil, fmt.Errorf("drawing a random token: %w", err)
	}
	return &Server{cfg: cfg, conf: conf, warnings: warnings, token: hex.EncodeToString(token[:]), watch: newWatch(), known: &knows{}, wants: &wants{}, proxy: &proxy{}}, nil
}

// ForRun gives the same side with a run's id and mark, which are known only once the journal is
// open. Both servers' sessions count as this process's own.
func (s *Server) ForRun(runID, mark string) *Server {
	other := s.copy()
	other.cfg.RunID, other.cfg.Mark = runID, mark
	return other
}

// ReadOnly gives the same side with sessions that cannot write, whatever they are asked for, those
// of PostgreSQL's own programs included. Nil stays nil: a side that is gone.
func (s *Server) ReadOnly() *Server {
	if s == nil {
		return nil
	}
	other := s.copy()
	other.readOnly = true
	return other
}

// At gives the same side, with the same credentials, at another address as Address writes it.
func (s *Server) At(address string) (*Server, error) {
	slash := strings.LastIndex(address, "/")
	if slash < 0 {
		return nil, fmt.Errorf("%q is no address", address)
	}
	other := s.copy()
	other.conf, other.proxy = s.conf.Copy(), &proxy{}
	other.conf.Database, other.conf.Fallbacks = address[slash+1:], nil
	plain := s.conf.TLSConfig == nil || slices.ContainsFunc(s.conf.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.TLSConfig == nil })
	var ways []*pgconn.FallbackConfig
	for _, at := range strings.Split(address[:slash], ",") {
		colon := strings.LastIndex(at, ":")
		port, err := strconv.ParseUint(at[colon+1:], 10, 16)
		if colon < 0 || err != nil {
			return nil, fmt.Errorf("%q is no address", address)
		}
		if s.conf.TLSConfig != nil && !strings.HasPrefix(at, "/") { // a socket has no TLS
			tls := s.conf.TLSConfig.Clone()
			if tls.ServerName != "" {
				tls.ServerName = at[:colon]
			}
			ways = append(ways, &pgconn.FallbackConfig{Host: at[:colon], Port: uint16(port), TLSConfig: tls})
		}
		if plain || strings.HasPrefix(at, "/") {
			ways = append(ways, &pgconn.FallbackConfig{Host: at[:colon], Port: uint16(port)})
		}
	}
	other.conf.Host, other.conf.Port, other.conf.TLSConfig, other.conf.Fallbacks = ways[0].Host, ways[0].Port, ways[0].TLSConfig, ways[1:]
	return other, nil
}

func (s *Server) copy() *Server {
	other := *s
	return &other
}

// Config gives the settings, secrets included: for a process of ours that takes over, through a pipe.
func (s *Server) Config() Config { return s.cfg }

// Side gives "source" or "target".
func (s *Server) Side() string { return s.cfg.Side }

// Warnings names, one sentence each, what of the connection string and the environment does not
// count.
func (s *Server) Warnings() []string { return s.warnings }

// Connect opens a session whose every setting that could change bytes, order or lifetime is
// pinned against what a DBA set for the role or the database. A pooler in transaction mode in
// between is an error (PoolerError): settings, locks and snapshots would go astray in it.
func (s *Server) Connect(ctx context.Context, use Use) (*pgx.Conn, error) {
	conn, err := s.open(ctx, use)
	if err != nil {
		return nil, err
	}
	// Before anything is set: in a transaction-mode pooler it would stay behind in a session that
	// an application gets next.
	err = s.checkPooler(ctx, conn, use)
	if err == nil {
		err = s.checkPlace(ctx, conn)
	}
	if err == nil {
		err = s.pin(ctx, conn, use)
	}
	if err != nil {
		closeQuietly(ctx, conn)
		return nil, fmt.Errorf("preparing a session on the %s: %w", s.cfg.Side, err)
	}
	return conn, nil
}

// open connects and sets nothing but application_name, the one startup parameter that every
// pooler lets through.
func (s *Server) open(ctx context.Context, use Use) (*pgx.Conn, error) {
	conf := s.conf.Copy()
	if err := s.password(ctx, conf); err != nil {
		return nil, fmt.Errorf("getting the %s's password: %w", s.cfg.Side, err)
	}
	conf.RuntimeParams["application_name"] = s.applicationName(use)
	conf.OnPgError = s.wants.hear(conf.OnPgError)
	conf.OnNotice = hear
	dial(conf, use, s.watch)
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		address := s.Address()
		return nil, fmt.Errorf("connecting to the %s at %s: %w", s.cfg.Side, address, connectFailure(err, address, conf.Password))
	}
	return conn, nil
}

// closeQuietly ends a session even when ctx is over; what it was used for has an error already.
func closeQuietly(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// Address gives host:port/database, without user and password; several hosts are separated by
// commas.
func (s *Server) Address() string {
	hosts := []string{fmt.Sprintf("%s:%d", s.conf.Host, s.conf.Port)}
	for _, f := range s.conf.Fallbacks {
		if h := fmt.Sprintf("%s:%d", f.Host, f.Port); h != hosts[len(hosts)-1] {
			hosts = append(hosts, h)
		}
	}
	return strings.Join(hosts, ",") + "/" + s.conf.Database
}

// nameBytes is the longest application_name (NAMEDATALEN - 1).
const nameBytes = 63

// appPrefix begins the application_name of every session of a run.
func appPrefix(runID string) string { return "pgrunbook " + runID + " " }

// ApplicationName is that of the sessions which this process opens for a use: others find them by it.
func (s *Server) ApplicationName(use string) string { return s.applicationName(Use{Name: use}) }

// applicationName is "pgrunbook RUN NAME ~TOKEN".
func (s *Server) applicationName(use Use) string {
	name := "pgrunbook"
	if s.cfg.RunID != "" {
		name += " " + s.cfg.RunID
	}
	if use.Name != "" {
		name += " " + use.Name
	}
	token := " ~" + s.token
	return name[:min(len(name), nameBytes-len(token))] + token
}

// failure is a connection error in one line, without the driver's config, which holds the
// password.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// NeverOpened reports that there was no session at all: the server was not reached, or let nobody in.
func NeverOpened(err error) bool { return errors.As(err, new(*failure)) }

// dialed is how the driver words that it came to no connection at all: "ADDRESS (HOST): dial error:
// dial tcp ADDRESS: connect: connection refused".
var dialed = regexp.MustCompile(`^\S+ \(\S*\): dial error: dial \w+ (\S+): (.*)$`)

// refusedTLS is how the driver words that a server has no TLS: "ADDRESS (HOST): tls error: server refused ...".
var refusedTLS = regexp.MustCompile(`^(\S+ \(\S*\): )(?:tls error: )?server refused TLS connection$`)

// answered is how the driver words what a server said: "ADDRESS (HOST): server error: FATAL: ...".
var answered = regexp.MustCompile(`^(\S+) \(\S*\): (.*)$`)

// tried gives each cause once: the driver tries every address, with TLS and without, and says all of
// it each time. An address that was named already is left out.
func tried(text, named string) string {
	var out []string
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if m := dialed.FindStringSubmatch(line); m != nil {
			line = m[1] + ": " + m[2]
			if strings.HasPrefix(named, m[1]+"/") {
				line = m[2]
			}
		}
		if m := refusedTLS.FindStringSubmatch(line); m != nil {
			if slices.ContainsFunc(lines[i+1:], func(later string) bool { return strings.HasPrefix(later, m[1]) }) {
				continue // sslmode prefer went on without: what came of that is the cause
			}
			line += ": its ssl is off; turn it on there, or say sslmode=disable in the connection string where the way is safe"
		}
		if m := answered.FindStringSubmatch(line); m != nil {
			line = m[1] + ": " + m[2]
			if strings.HasPrefix(named, m[1]+"/") {
				line = m[2]
			}
		}
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}

// connectFailure drops the config from the driver's error and keeps SQLSTATE and cause.
func connectFailure(err error, address, password string) error {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		err = connect.Unwrap()
	}
	text := strings.Join(strings.Fields(tried(err.Error(), address)), " ")
	if len(password) > 3 {
		text = strings.ReplaceAll(text, password, "xxxxx")
	}
	return &failure{text: text, err: err}
}
