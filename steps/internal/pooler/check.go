package pooler

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// rightsProbe is a command that only admin_users may send and that does nothing: there is no such
// database.
const rightsProbe = `RESUME "pgrunbook looks whether it may"`

// Check says what would keep the cutover from driving this pooler. It changes nothing. The error
// is for a ctx that is over; everything else is a finding.
func (p *Pooler) Check(ctx context.Context) ([]engine.Finding, error) { return p.check(ctx, nil) }

// Check looks at all of them.
func (g Group) Check(ctx context.Context) ([]engine.Finding, error) {
	driven := map[string]bool{}
	for _, p := range g {
		driven[p.key(p.cfg.Database)] = true
	}
	var all []engine.Finding
	for _, p := range g {
		found, err := p.check(ctx, driven)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func (p *Pooler) key(database string) string { return p.server.Address() + " " + database }

// findings collects what one check has to say.
type findings struct {
	object string
	all    []engine.Finding
}

func (f *findings) add(code string, severity engine.Severity, fix, format string, args ...any) {
	f.all = append(f.all, engine.Finding{Code: code, Severity: severity, Side: engine.Runner, Object: f.object, Text: fmt.Sprintf(format, args...), Fix: fix})
}

func (p *Pooler) check(ctx context.Context, driven map[string]bool) ([]engine.Finding, error) {
	f := &findings{object: "pooler " + p.cfg.Name}
	for _, look := range []func(context.Context, *findings, map[string]bool) (bool, error){p.checkConsole, p.checkDatabase, p.checkSettings} {
		goOn, err := look(ctx, f, driven)
		if ctx.Err() != nil {
			return nil, p.fail("checking", engine.ClassFailed, "", ctx.Err())
		}
		if err != nil {
			f.add("PLR101", engine.SeverityError, p.reachHint(), "Its admin console cannot be used: %v.", err)
		}
		if err != nil || !goOn {
			return f.all, nil
		}
	}
	p.checkFile(ctx, f)
	return f.all, nil
}

// checkConsole looks who answers and what we may do there.
func (p *Pooler) checkConsole(ctx context.Context, f *findings, _ map[string]bool) (bool, error) {
	conn, err := p.server.ConnectConsole(ctx)
	if err != nil {
		return false, err
	}
	defer closeConn(conn)
	release, console := strings.CutSuffix(conn.ParameterStatus("server_version"), "/bouncer")
	if !console {
		f.add("PLR102", engine.SeverityError, "Write dbname=pgbouncer into admin.", "What answers at %s is not PgBouncer's admin console.", p.server.Address())
		return false, nil
	}
	f.add("PLR100", engine.SeverityInfo, "", "PgBouncer %s at %s.", release, p.server.Address())
	if _, err := command(ctx, conn, rightsProbe); strings.Contains(refusal(err), "admin access needed") {
		f.add("PLR103", engine.SeverityError, refusedHint("admin access needed"), "The console's user may look but not PAUSE, RELOAD and RESUME.")
	} else if refusal(err) == "" && err != nil {
		return false, err
	}
	return true, nil
}

// checkDatabase looks at the database and at others that lead to the same place.
func (p *Pooler) checkDatabase(ctx context.Context, f *findings, driven map[string]bool) (bool, error) {
	s, err := p.State(ctx)
	if err != nil {
		return false, err
	}
	if !s.Listed {
		return true, nil // perhaps "*" serves it: the file tells
	}
	if s.Paused {
		f.add("PLR105", engine.SeverityError, fmt.Sprintf("On its admin console: RESUME %s;", consoleName(p.cfg.Database)), "Database %s is paused: clients are waiting, perhaps since a run that died.", p.cfg.Database)
	}
	if s.Disabled {
		f.add("PLR105", engine.SeverityError, fmt.Sprintf("On its admin console: ENABLE %s;", consoleName(p.cfg.Database)), "Database %s is disabled.", p.cfg.Database)
	}
	if s.PoolMode == "session" {
		f.add("PLR106", engine.SeverityWarning, "Set pool_mode = transaction where the application allows it, or stop long-lived clients first.",
			"Database %s has pool_mode = session: PAUSE returns only when every client has disconnected, and gives up after %s.", p.cfg.Database, p.cfg.Timeout)
	}
	databases, err := p.ask(ctx, "SHOW DATABASES")
	if err != nil {
		return false, err
	}
	var others []string
	for _, r := range databases {
		at := place(r)
		at.User = s.Points.User // another user is the same place
		if name := r["name"]; name != p.cfg.Database && at == s.Points && !driven[p.key(name)] {
			others = append(others, name)
		}
	}
	if len(others) > 0 {
		f.add("PLR107", engine.SeverityWarning, "Write a pooler block for each of them.",
			"%s leads to the same database (%s) and is neither paused nor repointed: its writers get an error at the flip.", strings.Join(others, ", "), s.Points)
	}
	return true, nil
}

// gettingReady is what passes at most between PAUSE and a freeze that has begun.
const gettingReady = 5 * time.Second

// checkSettings looks at what would break waiting clients.
func (p *Pooler) checkSettings(ctx context.Context, f *findings, _ map[string]bool) (bool, error) {
	settings, err := p.settings(ctx)
	if err != nil {
		return false, err
	}
	longest := p.cfg.Timeout + gettingReady + p.cfg.MaxBlock // PAUSE, the looks and both holds, the freeze
	if limit, err := strconv.ParseFloat(settings["query_wait_timeout"], 64); err == nil && limit > 0 && limit < longest.Seconds() {
		f.add("PLR108", engine.SeverityWarning, fmt.Sprintf("Set query_wait_timeout above %s.", longest.Round(time.Second)),
			"query_wait_timeout is %gs: clients that wait longer in PAUSE, while the freeze gets ready, and in it (up to %s) are disconnected.", limit, longest)
	}
	if settings["so_reuseport"] == "1" {
		f.add("PLR109", engine.SeverityWarning, "Write one pooler block per process, each with that process's own unix_socket_dir or port in admin.",
			"so_reuseport is on: several processes may share %s, and a console connection reaches only one of them.", p.server.Address())
	}
	return true, nil
}

// checkFile compares the file with what the pooler has read.
func (p *Pooler) checkFile(ctx context.Context, f *findings) {
	s, err := p.State(ctx)
	if err != nil {
		f.add("PLR101", engine.SeverityError, p.reachHint(), "Its admin console cannot be used: %v.", err)
		return
	}
	if !p.Repoints() {
		if !s.Listed {
			f.add("PLR104", engine.SeverityWarning, "Compare the name with SHOW DATABASES on its admin console.", `It lists no database %s; that is right only if "*" serves it and nobody is connected.`, p.cfg.Database)
		}
		return
	}
	c, err := p.Plan()
	if err != nil {
		f.add("PLR110", engine.SeverityError, engine.HintOf(err), "%v.", err)
		return
	}
	if s.Listed && s.Points != c.From {
		f.add("PLR111", engine.SeverityError, "Name the file that it reads (SHOW CONFIG has conffile), or send RELOAD and look again.",
			"%s has %s = %s, but the pooler goes to %s: it reads another file, or this one was changed without RELOAD.", c.File, c.Database, c.From, s.Points)
	}
	if !s.Listed && !c.Inserted {
		f.add("PLR111", engine.SeverityError, "Name the file that it reads (SHOW CONFIG has conffile), or send RELOAD and look again.", "%s has an entry %s, but the pooler lists no such database.", c.File, c.Database)
	}
	if c.Inserted {
		f.add("PLR112", engine.SeverityInfo, "", `Only "*" serves database %s: it gets an entry of its own in %s, in front of "*", and keeps it.`, c.Database, c.File)
	}
	if len(c.Keys) == 0 {
		f.add("PLR113", engine.SeverityWarning, "Look whether connect is what you mean.", "Database %s points to %s already.", c.Database, c.To)
	}
	if err := replaceable(c.File); err != nil {
		f.add("PLR114", engine.SeverityError, "Run as the file's owner (often postgres or pgbouncer) or as root.", "%s cannot be rewritten: %v.", c.File, err)
	}
}
