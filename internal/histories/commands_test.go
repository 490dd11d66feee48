package histories_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// ended is how one process of the program ended.
type ended struct {
	code   int
	signal syscall.Signal
	text   string
	hurt   bool // a fault has fired
}

func (e ended) String() string {
	return cond(e.signal != 0, fmt.Sprintf("ended by %s", e.signal), fmt.Sprintf("exit code %d", e.code))
}

// command repeats a command until it is done. Only an attempt that was hurt, or that somebody's DDL
// came into, may fail, with an exit code of the reference.
func (w *world) command(c Command) {
	flips := c.Args == "apply" || c.Args == "rollback"
	switch {
	case c.Args == "rollback":
		w.ways[0].Shut()
	case strings.HasPrefix(c.Args, "apply") && w.owner == 0:
		w.flipped.Store(false)
		w.ways[1].Shut()
	}
	hurt, refusals, most := 0, 0, 4+len(c.Faults)+3*len(c.Events)+3*len(w.touched)
	events := w.events(c)
	for try := 0; ; try++ {
		e := w.attempt(c, try)
		if e.hurt {
			hurt = 2 // its effects may reach the next attempt
		}
		pending := w.mustStop()
		done := e.code == 0 && e.signal == 0
		if done && flips && len(pending) > 0 {
			w.Errorf("%s passed over what must stop it: %s", c.Args, pending[0].Kind)
		}
		if done || w.failed() {
			break
		}
		refusals += cond(e.code == 16, 1, 0)
		if c.Args == "rehearse" && refusals > 3 {
			break
		}
		if complaint := w.verdict(e, hurt > 0, pending); complaint != "" || try-refusals >= most || refusals > 8 {
			w.Errorf("pgrunbook %s: %s, attempt %d: %s\n%s", c.Args, e, try+1, cond(complaint == "", "it does not get done", complaint), spoken(e.text))
			break
		}
		hurt--
	}
	events()
	if c.Args == "rollback" && w.modes != "" && !w.failed() {
		w.sql(w.source, w.modes)
		w.modes = ""
	}
	if flips && !w.failed() {
		w.owner = cond(c.Args == "apply", 1, 0)
		w.admitted()
		w.comparing.Wait() // the next flip would end its sessions, and the one that holds the snapshot
	}
}

// verdict says what is wrong with a failure. Where DDL stopped the run, it takes that back.
func (w *world) verdict(e ended, hurt bool, pending []Event) string {
	switch {
	case e.signal == syscall.SIGKILL && e.hurt, e.code == 143 && e.hurt, e.code == 16:
		return ""
	case e.signal == syscall.SIGTERM && e.hurt && e.text == "": // it came before the program could hear it
		return ""
	case e.code == 1 && strings.Contains(e.text, "ENABLE ALWAYS or REPLICA"):
		return w.silence(strings.Contains(e.text, "on the source trigger"))
	case e.code != 1 && e.code != 10:
		return "no answer to anything that happened"
	}
	named := slices.ContainsFunc(w.touches(), func(table string) bool { return strings.Contains(e.text, table) })
	switch {
	case named && len(pending) > 0:
		w.undo(pending)
		return ""
	case named, hurt && e.code == 1:
		return ""
	}
	return "nothing happened that explains it"
}

const firingSQL = `SELECT coalesce(string_agg(format('ALTER TABLE %s DISABLE TRIGGER %I;', tgrelid::regclass, tgname), ''), ''),
	coalesce(string_agg(format('ALTER TABLE %s ENABLE %s TRIGGER %I;', tgrelid::regclass, CASE tgenabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END, tgname), ''), '')
	FROM pg_trigger WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal AND tgname !~ 'pgrunbook'
	AND tgrelid NOT IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('pgrunbook'))`

// silence does what a refusal asks for: triggers that fire in any role are disabled where rows are
// carried to. On the source they get their mode back once it takes writes.
func (w *world) silence(source bool) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	url := cond(source, w.source, w.target)
	conn, err := pgx.Connect(ctx, url)
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	var off, on string
	w.must(conn.QueryRow(ctx, firingSQL).Scan(&off, &on))
	if off == "" {
		return "it names triggers, and there is none"
	}
	w.sql(url, "BEGIN READ WRITE; "+off+"; COMMIT")
	if source {
		w.modes = on
	}
	w.count("silenced")
	return ""
}

// attempt runs the program once, with the faults of that attempt.
func (w *world) attempt(c Command, try int) ended {
	args := append(strings.Fields(c.Args), "history.runbook.hcl")
	if slices.Contains([]string{"apply", "rollback", "finish", "abort"}, args[0]) {
		args = append(args, "--auto-approve")
	}
	w.runs++
	var rules []string
	for _, ft := range c.Faults {
		if ft.Try == try && ft.Kind == "point" {
			rules = append(rules, ft.Point+":kill")
		}
	}
	bin, err := testpg.ClientBinDir(context.Background(), w.clusters[1].Major)
	w.must(err)
	cmd := exec.Command(program, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "SOURCE_URL="+w.proxies[0].URL(w.source), "TARGET_URL="+w.proxies[1].URL(w.target), "PGRUNBOOK_PG_BIN_DIRS="+bin,
		"PGRUNBOOK_FAILPOINTS="+strings.Join(rules, ";"), "PGRUNBOOK_MUTANT="+cond(w.without == "", os.Getenv("PGRUNBOOK_MUTANT"), w.without), "GOGC=800") // it lives for seconds
	out, err := os.Create(filepath.Join(w.dir, fmt.Sprintf("out%d", w.runs))) // a pipe would make us wait for the guardian too
	w.must(err)
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	w.must(cmd.Start())
	stop := w.inject(c, try, cmd.Process)
	wait := make(chan error, 1)
	go func() { wait <- cmd.Wait() }()
	select {
	case err = <-wait:
	case <-time.After(8 * time.Minute):
		w.Errorf("pgrunbook %s hangs", c.Args)
		_ = cmd.Process.Signal(syscall.SIGQUIT) // its goroutines are in its output
		err = <-wait
	}
	e := ended{hurt: stop()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if e.code = status.ExitStatus(); status.Signaled() {
			e.signal = status.Signal()
		}
	} else {
		w.must(err)
	}
	text, err := os.ReadFile(out.Name())
	w.must(err)
	e.text = string(text)
	if len(rules) > 0 && e.signal == syscall.SIGKILL {
		e.hurt = true
		w.count("point")
	}
	fmt.Fprintf(&w.log, "--- pgrunbook %s %v: %s\n%s", c.Args, rules, e, text)
	if strings.Contains(e.text, "panic:") {
		w.Errorf("pgrunbook %s panicked", c.Args)
	}
	return e
}

// inject arms the faults of an attempt; the function that it returns heals everything and says
// whether one has fired.
func (w *world) inject(c Command, try int, p *os.Process) (stop func() bool) {
	over := make(chan struct{})
	var hurt atomic.Bool
	var wait sync.WaitGroup
	fired := func(kind string) {
		hurt.Store(true)
		w.count(kind)
	}
	for _, ft := range c.Faults {
		if ft.Try != try || ft.Kind == "point" {
			continue
		}
		if cut := map[string]testpg.CommitCut{"commit lost": testpg.CommitNotSent, "commit unanswered": testpg.CommitUnanswered}[ft.Kind]; cut != 0 {
			w.proxies[ft.Side].CutCommit(cut, ft.N)
			before := w.proxies[ft.Side].Fired(testpg.FaultCommit)
			wait.Go(func() {
				<-over
				if w.proxies[ft.Side].Fired(testpg.FaultCommit) > before {
					fired(ft.Kind)
				}
			})
			continue
		}
		wait.Go(func() {
			select {
			case <-over:
				return
			case <-time.After(time.Duration(ft.After) * time.Millisecond):
			}
			if w.strike(ft, p) {
				fired(ft.Kind)
			}
		})
	}
	return func() bool {
		close(over)
		wait.Wait()
		for _, proxy := range w.proxies {
			proxy.Heal()
		}
		return hurt.Load()
	}
}

const endBackend = `SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
	WHERE datname = current_database() AND application_name LIKE 'pgrunbook%' ORDER BY md5((pid + $1)::text) LIMIT 1) s`

// strike lets one fault happen; false where there was nothing to hit.
func (w *world) strike(ft Fault, p *os.Process) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch ft.Kind {
	case "kill":
		return p.Signal(syscall.SIGKILL) == nil
	case "term":
		return p.Signal(syscall.SIGTERM) == nil
	case "stop": // longer than the hold lives
		ok := p.Signal(syscall.SIGSTOP) == nil
		time.Sleep(1500 * time.Millisecond)
		_ = p.Signal(syscall.SIGCONT)
		return ok
	case "reset":
		return w.proxies[ft.Side].Reset() > 0
	case "backend":
		conn, err := pgx.Connect(ctx, cond(ft.Side == 0, w.source, w.target))
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close(ctx) }()
		var n int64
		err = conn.QueryRow(ctx, endBackend, ft.N).Scan(&n)
		return err == nil && n > 0
	case "restart":
		w.must(w.clusters[ft.Side].Stop(ctx, testpg.Immediate))
		w.must(w.clusters[ft.Side].Start(ctx))
		return true
	}
	panic("unknown fault " + ft.Kind)
}

// admitted lets somebody through to the new side, so that the comparison is made also where no
// client is left.
func (w *world) admitted() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		conn, err := w.ways[w.owner].Connect(ctx)
		if err == nil {
			_ = conn.Close(ctx)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.Errorf("nobody gets through to side %d after the flip", w.owner)
}
