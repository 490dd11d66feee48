package testpg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say what cluster to start. The zero value of all but Major is good.
type Options struct {
	Major     int
	Dir       string            // where the data directory is made; defaults to the cluster's own place below /tmp
	Settings  map[string]string // postgresql.conf, over the defaults below
	Auth      string            // "trust" (default) or "scram"
	Password  string            // of Superuser; needed with scram
	Encoding  string            // defaults to UTF8
	Locale    string            // defaults to C.UTF-8
	Superuser string            // defaults to postgres
	Fsync     bool              // durable against power loss; off for speed. A killed server loses nothing either way
	Clock     bool              // the server's clock is its own: SetClock
}

// Cluster is one running (or stopped) PostgreSQL server.
type Cluster struct {
	Install
	Port      int
	SocketDir string // 127.0.0.1 and this directory are the ways in
	DataDir   string
	Superuser string

	opts    Options
	root    *workdir
	account account
	proc    *process
	admin   admin
}

// defaults are settings that suit tests: nothing here changes what SQL means.
func defaults(o Options) map[string]string {
	s := map[string]string{
		"max_connections": "100", "shared_buffers": "64MB", "max_prepared_transactions": "20",
		"timezone": "UTC", "log_timezone": "UTC", "lc_messages": "C", "log_line_prefix": "%m [%p] %q%u@%d/%a ",
		"dynamic_shared_memory_type": "mmap", "logging_collector": "off", "max_wal_senders": "10",
		// Its rounds grow with the number of databases, and each is a new process.
		"autovacuum_naptime": "1h",
	}
	if !o.Fsync {
		s["fsync"], s["full_page_writes"] = "off", "off"
	}
	maps.Copy(s, o.Settings)
	return s
}

// Start makes a new cluster and returns once it takes connections. It downloads
// PostgreSQL when it must. The cluster lives until Remove, or until this process
// ends in any way.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := prepare(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("starting PostgreSQL %d: %w", o.Major, err)
	}
	err = c.initdb(ctx)
	if err == nil {
		err = c.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting PostgreSQL %d: %w", o.Major, err), c.Remove())
	}
	return c, nil
}

// prepare finds programs, user, directories and a port.
func prepare(ctx context.Context, o Options) (*Cluster, error) {
	o.Auth = orDefault(o.Auth, "trust")
	o.Encoding = orDefault(o.Encoding, "UTF8")
	o.Locale = orDefault(o.Locale, "C.UTF-8")
	o.Superuser = orDefault(o.Superuser, "postgres")
	if o.Auth != "trust" && o.Auth != "scram" {
		return nil, fmt.Errorf("unknown Auth %q: want trust or scram", o.Auth)
	}
	if o.Auth == "scram" && o.Password == "" {
		return nil, errors.New("scram needs a Password")
	}
	if o.Dir != "" && os.Geteuid() == 0 && !reachable(o.Dir) {
		return nil, fmt.Errorf("directory %s is private to root, and PostgreSQL runs as another user: use testpg.TempDir", o.Dir)
	}
	in, err := Ensure(ctx, nil, o.Major)
	if err != nil {
		return nil, err
	}
	acc, err := serverAccount()
	if err != nil {
		return nil, err
	}
	root, err := newWorkdir(acc)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Install: in[o.Major], Superuser: o.Superuser, opts: o, root: root, account: acc, SocketDir: filepath.Join(root.path, "s"), DataDir: filepath.Join(root.path, "data")}
	if o.Dir != "" {
		if c.DataDir, err = filepath.Abs(filepath.Join(o.Dir, "data-"+filepath.Base(root.path))); err != nil {
			return nil, errors.Join(err, c.Remove())
		}
		if err := root.noteData(c.DataDir); err != nil {
			return nil, errors.Join(err, c.Remove())
		}
	}
	if err := acc.mkdir(c.SocketDir, 0o755); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	if c.Port, err = root.reservePort(ctx); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return c, nil
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// URL is a connection string for a database and a role, over TCP. The
// superuser's carries the password when there is one.
func (c *Cluster) URL(db, user string) string {
	u := url.URL{Scheme: "postgresql", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)), Path: "/" + db, RawQuery: "sslmode=disable", User: url.User(user)}
	if user == c.Superuser && c.opts.Password != "" {
		u.User = url.UserPassword(user, c.opts.Password)
	}
	return u.String()
}

// ConnString is the superuser's URL of database postgres.
func (c *Cluster) ConnString() string { return c.URL("postgres", c.Superuser) }

// Addr is host:port, what a Proxy takes as its target.
func (c *Cluster) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)) }

// Exec runs statements one by one as superuser, each on its own.
func (c *Cluster) Exec(ctx context.Context, db string, statements ...string) error {
	conn, err := Connect(ctx, c.URL(db, c.Superuser))
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", db, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return fmt.Errorf("running %q: %w", s, err)
		}
	}
	return nil
}

// Configure changes settings in postgresql.conf's place; a running server is
// told to read them again, settings that need a restart wait for Restart.
func (c *Cluster) Configure(ctx context.Context, settings map[string]string) error {
	all := maps.Clone(c.opts.Settings)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, settings)
	c.opts.Settings = all
	if err := c.writeConfig(); err != nil {
		return err
	}
	if !c.Running() {
		return nil
	}
	return c.Exec(ctx, "postgres", "SELECT pg_catalog.pg_reload_conf()")
}

const configFile = "testpg.conf"

func (c *Cluster) writeConfig() error {
	s := defaults(c.opts)
	s["port"], s["listen_addresses"], s["unix_socket_directories"] = strconv.Itoa(c.Port), "127.0.0.1", c.SocketDir
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(s[k], "'", "''"))
	}
	path := filepath.Join(c.DataDir, configFile)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("writing the server's settings: %w", err)
	}
	return c.account.own(path)
}

// Log is everything that the server wrote, over all its starts.
func (c *Cluster) Log() string {
	b, err := os.ReadFile(c.logPath())
	if err != nil {
		return "no server log: " + err.Error()
	}
	return string(b)
}

func (c *Cluster) logPath() string { return filepath.Join(c.root.path, "log") }

// Remove stops the server at once and deletes what it has. Safe to call twice.
func (c *Cluster) Remove() error {
	var err error
	if c.Running() {
		err = c.KillPostmaster()
	}
	freeShared(c.DataDir)
	if rmErr := os.RemoveAll(c.DataDir); rmErr != nil {
		err = errors.Join(err, rmErr)
	}
	return errors.Join(err, c.root.remove())
}

// startTimeout bounds a start, recovery after a crash included.
const startTimeout = 90 * time.Second
