package pooler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Config is one pooler. Admin may hold a password and must not be printed.
type Config struct {
	Name       string        // the block's label: for messages
	Admin      string        // connection string of the admin console
	Database   string        // name of the pooler's database entry
	ConfigFile string        // where that entry stands; empty where people repoint by steps of their own
	Connect    string        // host, port, dbname, user of the entry after the switch, as key=value
	Timeout    time.Duration // longest wait of Group.Pause. Defaults to 5s
	MaxBlock   time.Duration // how long clients wait at most once paused; only Check uses it
}

// Pooler drives one database of one PgBouncer. It is safe for concurrent use.
type Pooler struct {
	cfg    Config
	want   []pair // of cfg.Connect
	server *pg.Server

	mu   sync.Mutex
	conn *pgconn.PgConn // kept open, so that RESUME needs no free slot
}

// Place is where a database entry points.
type Place struct {
	Host     string `json:"host,omitempty"` // empty: the pooler's own default, a Unix socket
	Port     int    `json:"port"`
	Database string `json:"dbname"`
	User     string `json:"user,omitempty"` // empty: every client's own
}

// String is the place in the file's words.
func (p Place) String() string {
	s := fmt.Sprintf("port=%d dbname=%s", p.Port, quoteValue(p.Database))
	if p.Host != "" {
		s = "host=" + quoteValue(p.Host) + " " + s
	}
	if p.User != "" {
		s += " user=" + quoteValue(p.User)
	}
	return s
}

// State is what the pooler says about the database.
type State struct {
	Listed   bool // false: it does not know the name, or "*" serves it and nobody is connected
	Paused   bool
	Disabled bool
	Points   Place
	PoolMode string // session, transaction or statement
}

const defaultTimeout = 5 * time.Second

// New reads the settings; it does not connect.
func New(cfg Config) (*Pooler, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	p := &Pooler{cfg: cfg}
	if cfg.Database == "" || cfg.Database == "*" || cfg.Database == "pgbouncer" {
		return nil, p.fail("reading", engine.ClassRunbook, "database is the name that clients connect to, one per pooler block.", fmt.Errorf("it names no database: %q", cfg.Database))
	}
	if (cfg.ConfigFile == "") != (cfg.Connect == "") {
		return nil, p.fail("reading", engine.ClassRunbook, "Write both config_file and connect, or neither.", errors.New("half a switch"))
	}
	var err error
	if p.want, err = parseConnect(cfg.Connect); err != nil {
		return nil, p.fail("reading", engine.ClassRunbook, `Write connect like "host=db2.example.net port=5432 dbname=erp".`, err)
	}
	if p.server, err = pg.New(pg.Config{Side: "pooler " + cfg.Name, URL: cfg.Admin}); err != nil {
		return nil, p.fail("reading", engine.ClassRunbook, `Write admin like "host=/run/pgbouncer port=6432 dbname=pgbouncer".`, err)
	}
	return p, nil
}

// Name is the block's label.
func (p *Pooler) Name() string { return p.cfg.Name }

// Repoints reports whether the switch has something to write.
func (p *Pooler) Repoints() bool { return p.cfg.ConfigFile != "" }

// Close ends the console connection; the pooler opens it again when it is needed.
func (p *Pooler) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop()
}

// fail is an error that names the pooler.
func (p *Pooler) fail(op string, class engine.Class, hint string, err error) error {
	return &engine.Error{Class: class, Op: op, Object: fmt.Sprintf("database %s of pooler %s", p.cfg.Database, p.cfg.Name), Hint: hint, Err: err}
}

// State looks: paused or not, and where the database points.
func (p *Pooler) State(ctx context.Context) (State, error) {
	databases, err := p.ask(ctx, "SHOW DATABASES")
	if err != nil {
		return State{}, p.fail("looking at", engine.ClassFailed, p.reachHint(), err)
	}
	for _, r := range databases {
		if r["name"] != p.cfg.Database {
			continue
		}
		s := State{Listed: true, Paused: r["paused"] == "1", Disabled: r["disabled"] == "1", PoolMode: r["pool_mode"], Points: place(r)}
		if s.PoolMode == "" {
			settings, err := p.settings(ctx)
			if err != nil {
				return State{}, p.fail("looking at", engine.ClassFailed, p.reachHint(), err)
			}
			s.PoolMode = settings["pool_mode"]
		}
		return s, nil
	}
	return State{}, nil
}

// place reads a row of SHOW DATABASES.
func place(r record) Place {
	port, _ := strconv.Atoi(r["port"]) // the console's own number
	return Place{Host: r["host"], Port: port, Database: r["database"], User: r["force_user"]}
}

// settings are the pooler's own.
func (p *Pooler) settings(ctx context.Context) (map[string]string, error) {
	rows, err := p.ask(ctx, "SHOW CONFIG")
	settings := map[string]string{}
	for _, r := range rows {
		settings[r["key"]] = r["value"]
	}
	return settings, err
}

func (p *Pooler) reachHint() string {
	return fmt.Sprintf("Look whether psql reaches the admin console at %s as a user of admin_users.", p.server.Address())
}

// Pause holds the database's clients back and returns when no transaction of theirs is open (in
// session mode: when each has disconnected). When that takes longer than timeout, or ctx ends, it
// is taken back and the error names who was in the way; it then has the class ClassNoCutover.
// Never call it while the gate is held: a transaction that waits there cannot end.
func (p *Pooler) Pause(ctx context.Context, timeout time.Duration) error {
	before, err := p.State(ctx) // the connection for RESUME is open from here on
	if err != nil {
		return err
	}
	waiter, err := p.server.ConnectConsole(ctx)
	if err != nil {
		return p.fail("pausing", engine.ClassFailed, p.reachHint(), err)
	}
	defer closeConn(waiter)
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err = command(bounded, waiter, "PAUSE "+consoleName(p.cfg.Database))
	if words := refusal(err); words != "" && !waiter.IsClosed() {
		return p.fail("pausing", engine.ClassFailed, refusedHint(words), err)
	}
	if err == nil {
		err = p.provePaused(ctx, before)
	}
	if err == nil {
		return nil
	}
	return p.takeBack(ctx, before, timeout, err)
}

// provePaused looks once more: a PAUSE that waits also returns when somebody else's RESUME came
// between.
func (p *Pooler) provePaused(ctx context.Context, before State) error {
	s, err := p.State(ctx)
	if err != nil {
		return err
	}
	if !s.Paused && (s.Listed || before.Listed) {
		return errors.New("it is not paused although PAUSE returned: somebody sent RESUME")
	}
	return nil
}

// takeBack frees the clients after a PAUSE that did not return.
func (p *Pooler) takeBack(ctx context.Context, before State, timeout time.Duration, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*commandTimeout)
	defer cancel()
	blockers, lookErr := p.Blockers(ctx) // before RESUME: afterwards everybody is busy again
	resumeErr := p.Resume(ctx)
	hint := "Let these transactions end, or start the cutover when they have."
	if before.PoolMode == "session" {
		hint = "With pool_mode = session PAUSE waits until every client has disconnected: set pool_mode = transaction for this database, or stop the clients."
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		cause = fmt.Errorf("PAUSE did not return within %s%s: %w", timeout, inTheWay(blockers), cause)
	}
	return errors.Join(p.fail("pausing", engine.ClassNoCutover, hint, cause), lookErr, resumeErr)
}

func refusedHint(words string) string {
	switch {
	case strings.Contains(words, "admin access needed"):
		return "Put the user of the admin connection string into admin_users; stats_users may only look."
	case strings.Contains(words, "already"):
		return "The whole pooler is paused or suspended by somebody else: RESUME; on its admin console, or wait."
	}
	return "The pooler has no such database: compare the name with SHOW DATABASES on its admin console."
}

// Resume lets the clients go on. It is not an error when nothing is paused, so any process may
// call it at any time, after a kill above all.
func (p *Pooler) Resume(ctx context.Context) error {
	_, err := p.ask(ctx, "RESUME "+consoleName(p.cfg.Database))
	words := refusal(err)
	if err == nil || strings.Contains(words, "is not paused") || strings.Contains(words, "no such database") {
		return nil
	}
	hint := fmt.Sprintf("Clients may be waiting. On the admin console at %s: RESUME %s;", p.server.Address(), consoleName(p.cfg.Database))
	return p.fail("resuming", engine.ClassFailed, hint, err)
}
