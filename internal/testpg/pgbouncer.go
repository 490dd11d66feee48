package testpg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// BouncerOptions say what pgbouncer to start. The zero value serves no database.
type BouncerOptions struct {
	Databases map[string]string // name of the entry: URL of the database behind it
	Raw       string            // text of the databases file, in place of Databases
	PoolMode  string            // session, transaction (default) or statement
	PoolSize  int               // server connections per database and user. Defaults to 20
	Password  string            // of the console's users; empty means that everybody is trusted
	Settings  map[string]string // section [pgbouncer], over the defaults
}

// Bouncer is one running (or stopped) pgbouncer.
type Bouncer struct {
	Port          int
	SocketDir     string // 127.0.0.1 and this directory are the ways in
	ConfigFile    string // includes DatabasesFile in its section [databases]
	DatabasesFile string

	opts    BouncerOptions
	root    *workdir
	account account
	proc    *process
}

// The users of the admin console. BouncerStats may only look.
const (
	BouncerAdmin = "pooladmin"
	BouncerStats = "poolstats"
)

var bouncerNeed = need{"pgbouncer", func() bool { _, err := bouncerPath(); return err == nil }, []string{"pgbouncer"}}

// bouncerPath finds pgbouncer; Debian has it where only root's PATH looks.
func bouncerPath() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	if executable("/usr/sbin", "pgbouncer") {
		return "/usr/sbin/pgbouncer", nil
	}
	return "", errors.New("finding pgbouncer: apt-get install pgbouncer")
}

// ensureBouncer installs pgbouncer where it is missing and we may.
func ensureBouncer(ctx context.Context) error {
	if bouncerNeed.found() {
		return nil
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "pgbouncer.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	return install(ctx, func(string, ...any) {}, []need{bouncerNeed})
}

// BouncerEntry is the line of a databases file that leads to a URL.
func BouncerEntry(name, target string) (string, error) {
	conf, err := pgx.ParseConfig(target)
	if err != nil {
		return "", fmt.Errorf("reading the URL behind pgbouncer's %s: %w", name, err)
	}
	return fmt.Sprintf("%s = host=%s port=%d dbname=%s", name, conf.Host, conf.Port, conf.Database), nil
}

// StartBouncer starts a pgbouncer of this test's own, as an unprivileged user,
// and returns once it takes connections. It lives until Remove, or until this
// process ends in any way.
func StartBouncer(ctx context.Context, o BouncerOptions) (*Bouncer, error) {
	if err := ensureBouncer(ctx); err != nil {
		return nil, fmt.Errorf("starting pgbouncer: %w", err)
	}
	acc, err := serverAccount()
	if err != nil {
		return nil, fmt.Errorf("starting pgbouncer: %w", err)
	}
	root, err := newWorkdir(acc)
	if err != nil {
		return nil, fmt.Errorf("starting pgbouncer: %w", err)
	}
	b := &Bouncer{opts: o, root: root, account: acc, SocketDir: filepath.Join(root.path, "s")}
	b.ConfigFile, b.DatabasesFile = filepath.Join(b.dir(), "pgbouncer.ini"), filepath.Join(b.dir(), "databases.ini")
	b.Port, err = root.reservePort(ctx)
	if err == nil {
		err = b.writeFiles()
	}
	if err == nil {
		err = b.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting pgbouncer: %w", err), b.Remove())
	}
	return b, nil
}

// StartBouncerT starts a pgbouncer and removes it at the test's end.
func StartBouncerT(t TB, o BouncerOptions) *Bouncer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // an installation may be needed
	defer cancel()
	b, err := StartBouncer(ctx, o)
	if err != nil {
		t.Fatalf("%v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := b.Remove(); err != nil {
			t.Errorf("removing pgbouncer: %v", err)
		}
	})
	return b
}

// dir is the working directory. Its name is that of a data directory, so that
// what a killed process leaves is swept like a server.
func (b *Bouncer) dir() string { return filepath.Join(b.root.path, "data") }

func (b *Bouncer) writeFiles() error {
	for _, d := range []string{b.SocketDir, b.dir()} {
		if err := b.account.mkdir(d, 0o755); err != nil {
			return err
		}
	}
	users := map[string]bool{BouncerAdmin: true, BouncerStats: true}
	databases := b.opts.Raw
	for _, name := range slices.Sorted(maps.Keys(b.opts.Databases)) {
		conf, err := pgx.ParseConfig(b.opts.Databases[name])
		if err != nil {
			return fmt.Errorf("reading the URL of %s: %w", name, err)
		}
		users[conf.User] = true
		line, err := BouncerEntry(name, b.opts.Databases[name])
		if err != nil {
			return err
		}
		databases += line + "\n"
	}
	users["postgres"] = true
	var list strings.Builder
	for _, u := range slices.Sorted(maps.Keys(users)) {
		fmt.Fprintf(&list, "\"%s\" \"%s\"\n", u, b.opts.Password)
	}
	for path, text := range map[string]string{
		b.ConfigFile: b.config(), b.DatabasesFile: databases, filepath.Join(b.dir(), "users.txt"): list.String(),
	} {
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			return err
		}
		if err := b.account.own(path); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bouncer) config() string {
	poolSize := b.opts.PoolSize
	if poolSize == 0 {
		poolSize = 20
	}
	s := map[string]string{
		"listen_addr": "127.0.0.1", "listen_port": strconv.Itoa(b.Port), "unix_socket_dir": b.SocketDir,
		"auth_type": "trust", "auth_file": filepath.Join(b.dir(), "users.txt"),
		"admin_users": BouncerAdmin, "stats_users": BouncerStats,
		"pool_mode": orDefault(b.opts.PoolMode, "transaction"), "default_pool_size": strconv.Itoa(poolSize),
		"max_client_conn": "500", "server_login_retry": "1", "ignore_startup_parameters": "extra_float_digits",
	}
	if b.opts.Password != "" {
		s["auth_type"] = "md5"
	}
	maps.Copy(s, b.opts.Settings)
	var out strings.Builder
	fmt.Fprintf(&out, "[databases]\n%%include %s\n\n[pgbouncer]\n", b.DatabasesFile)
	for _, k := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&out, "%s = %s\n", k, s[k])
	}
	return out.String()
}

// Start starts a stopped pgbouncer and waits until it takes connections.
func (b *Bouncer) Start(ctx context.Context) error {
	if b.Running() {
		return errors.New("pgbouncer runs already")
	}
	path, err := bouncerPath()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(b.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening pgbouncer's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(path, b.ConfigFile) //nolint:noctx // outlives the call; Stop ends it
	cmd.Dir = b.dir()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = serverEnv()
	cmd.SysProcAttr = b.account.attr(syscall.SIGKILL)
	if err := launch(cmd); err != nil {
		return fmt.Errorf("starting pgbouncer: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	b.proc = p
	return b.waitReady(ctx)
}

func (b *Bouncer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.Addr())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-b.proc.done:
			return fmt.Errorf("pgbouncer ended while starting:\n%s", tail(b.Log(), 20))
		case <-ctx.Done():
			return fmt.Errorf("waiting for pgbouncer to take connections: %w: %w\n%s", ctx.Err(), err, tail(b.Log(), 20))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Addr is host:port.
func (b *Bouncer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.Port)) }

// URL is a client's connection string through pgbouncer, over TCP.
func (b *Bouncer) URL(db, user string) string {
	u := url.URL{Scheme: "postgresql", Host: b.Addr(), Path: "/" + db, RawQuery: "sslmode=disable", User: url.User(user)}
	if b.opts.Password != "" {
		u.User = url.UserPassword(user, b.opts.Password)
	}
	return u.String()
}

// Console is the admin console's connection string for BouncerAdmin or BouncerStats.
func (b *Bouncer) Console(user string) string { return b.URL("pgbouncer", user) }

// Running says whether the process lives.
func (b *Bouncer) Running() bool {
	if b.proc == nil {
		return false
	}
	select {
	case <-b.proc.done:
		return false
	default:
		return true
	}
}

// Stop lets running transactions end (SIGINT) and waits.
func (b *Bouncer) Stop(ctx context.Context) error {
	if !b.Running() {
		return errors.New("stopping pgbouncer: it does not run")
	}
	if err := b.proc.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("stopping pgbouncer: %w", err)
	}
	select {
	case <-b.proc.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping pgbouncer: %w", ctx.Err())
	}
}

// Kill ends it with SIGKILL: all connections break.
func (b *Bouncer) Kill() error {
	if !b.Running() {
		return errors.New("killing pgbouncer: it does not run")
	}
	if err := b.proc.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing pgbouncer: %w", err)
	}
	<-b.proc.done
	return nil
}

// Signal stops it (SIGSTOP), or lets it go on (SIGCONT).
func (b *Bouncer) Signal(s syscall.Signal) error {
	if err := b.proc.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %s to pgbouncer: %w", s, err)
	}
	return nil
}

// Log is everything that it wrote, over all its starts.
func (b *Bouncer) Log() string {
	text, err := os.ReadFile(b.logPath())
	if err != nil {
		return "no pgbouncer log: " + err.Error()
	}
	return string(text)
}

func (b *Bouncer) logPath() string { return filepath.Join(b.root.path, "log") }

// Remove ends it at once and deletes what it has. Safe to call twice.
func (b *Bouncer) Remove() error {
	var err error
	if b.Running() {
		err = b.Kill()
	}
	return errors.Join(err, b.root.remove())
}
