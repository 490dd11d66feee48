package cutover_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// ownServers is a rig on two servers of its own, which may die, without clients.
func ownServers(t *testing.T) (r *rig, source, target *testpg.Cluster) {
	t.Helper()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	source, target = testpg.StartT(t, testpg.Options{Major: from}), testpg.StartT(t, testpg.Options{Major: to})
	return rigOn(t, schemaSQL, testpg.NewDB(t, source), testpg.NewDB(t, target), to), source, target
}

// dies stops a server for good: its disk is gone too.
func (r *rig) dies(c *testpg.Cluster) {
	r.t.Helper()
	r.must(c.KillPostmaster())
	r.must(os.RemoveAll(c.DataDir))
}

// with changes a variable of the program's environment.
func (r *rig) with(name, value string) {
	r.env = append(slices.DeleteFunc(slices.Clone(r.env), func(v string) bool { return strings.HasPrefix(v, name+"=") }), name+"="+value)
}

// alone are the words that give the target up.
var alone = []string{"rollback", "--without-target", "--accept-loss", "-y"}

// killedAt kills a command at a failpoint that it must reach.
func (r *rig) killedAt(point string, args ...string) {
	r.t.Helper()
	if o := r.start(point+":kill", args...).end(); o.signal != syscall.SIGKILL {
		r.t.Fatalf("%s did not die at %s: exit code %d\n%s", args[0], point, o.code, o.text)
	}
}

const pointing = `
rollback { keep_for = "1h" }
cutover {
  max_write_block = "20s"
  attempts        = 40
  retry_every     = "300ms"
  sequence_margin = 100
  pooler "pgbouncer" "front" {
    admin       = %q
    database    = "erp"
    config_file = %q
    connect     = %q
  }
  switch {
    step "exec" "dns" {
      command = ["/bin/sh", "-c", "echo there >> $SAYS"]
      undo    = ["/bin/sh", "-c", "echo back >> $SAYS"]
      env     = { SAYS = "%s/says" }
      timeout = "2s"
    }
  }
}
`

// TestRollbackWithoutTarget: the target's server and disk are gone after the flip. The source says
// what is lost and what came back, and takes writes again; killed at each boundary and repeated. Not
// while the target lives, and not without the word.
func TestRollbackWithoutTarget(t *testing.T) {
	t.Parallel()
	r, _, target := ownServers(t)
	b := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"erp": r.source}, Settings: map[string]string{"query_wait_timeout": "120"}})
	entry, err := testpg.BouncerEntry("", r.target)
	r.must(err)
	r.write(fmt.Sprintf(pointing, b.Console(testpg.BouncerAdmin), b.DatabasesFile, strings.TrimPrefix(entry, " = "), r.dir))
	p := &pooled{rig: r, bouncers: []*testpg.Bouncer{b}}
	schema := r.dump(r.source)

	r.says(r.want(1, alone...), "holds no run")
	r.want(0, "apply", "-y", "--until", "arm")
	r.says(r.want(1, alone...), "it takes writes already", "abort --without-target")
	r.want(0, "apply", "-y")
	p.leads(r.target)
	r.sql(r.target, "INSERT INTO app.item (name, net) VALUES ('came back', 1); INSERT INTO app.jobs (text) VALUES ('lost in any case')")
	follow := r.start("", "follow")
	r.eventually("the row comes back", func() bool {
		return r.ask(r.source, "SELECT count(*)::text FROM app.item WHERE name = 'came back'") == "1"
	})
	held := r.start("", alone...).end() // a follow that runs somewhere proves that the target lives
	if held.code == 0 {
		t.Errorf("the source was opened while reverse passes ran:\n%s", held.text)
	}
	follow.signal(syscall.SIGINT)
	follow.end()
	r.sql(r.target, "INSERT INTO app.item (name, net) VALUES ('is lost', 1); SELECT nextval('app.ticket')")
	r.says(r.want(1, alone...), "it answers and takes writes", "pgrunbook rollback")
	r.want(4, "rollback", "--accept-loss", "-y")
	r.refused(r.source, "25006")

	r.dies(target)
	check := r.want(0, "rollback", "--without-target", "--check")
	r.says(check, "no answer:", "closed since 20", "lost what was committed on the target after 20", "(reverse pass ",
		"tables that are carried in a freeze only: app.jobs", "not known how many rows", "which numbers the target's sequences", "undo exec", "pooler front: point erp back", "2 sequences are set 100 values ahead")
	var loss struct {
		Closed, Carried time.Time
		AtFlip          []string `json:"at_flip"`
		Unknown         []string
		Refused         int `json:"refused_writes"`
	}
	r.must(json.Unmarshal([]byte(r.stdout("rollback", "--without-target", "--check", "--json")), &loss))
	if loss.Closed.IsZero() || loss.Carried.Before(loss.Closed.Add(-time.Minute)) || len(loss.AtFlip) != 1 || len(loss.Unknown) != 3 || loss.Refused != 1 {
		t.Errorf("the loss as JSON: %+v", loss)
	}
	r.want(14, "rollback", "--without-target")
	r.says(r.want(14, "rollback", "--without-target", "-y"), "--accept-loss")
	for _, point := range []string{"alone.locked", "alone.switched", "alone.repointed", "alone.opening"} {
		r.killedAt(point, alone...)
		r.refused(r.source, "25006")
	}
	ticket := r.ask(r.source, "SELECT last_value::text FROM app.ticket")
	r.killedAt("alone.opened", alone...)
	r.sql(r.source, "INSERT INTO app.bag VALUES (1, 'takes writes, by a session like any other')")
	r.killedAt("alone.resumed", alone...)
	r.says(r.want(0, alone...), "opened without the target at 20", "rolled back without the target: the source takes writes", "abort --without-target")
	p.leads(r.source)
	r.sql(b.URL("erp", "postgres"), "INSERT INTO app.item (name, net) VALUES ('through the pooler', 1)")
	if got := r.ask(r.source, "SELECT string_agg(name, ', ' ORDER BY name) FROM app.item WHERE name !~ '^item'"); got != "came back, through the pooler" {
		t.Errorf("on the source are: %s", got)
	}
	if now := r.ask(r.source, "SELECT (last_value - "+ticket+")::text FROM app.ticket"); now != "101" && now != "100" {
		t.Errorf("the sequence stands %s values ahead of %s, want the margin once", now, ticket)
	}
	if got := r.read("says"); !strings.HasPrefix(got, "there\nback\n") || strings.Contains(strings.TrimPrefix(got, "there\n"), "there") {
		t.Errorf("the switch step and its undo said %q", got)
	}
	r.want(0, "abort", "-y", "--without-target")
	if now := r.dump(r.source); now != schema {
		t.Errorf("after abort the source differs:\n%s", firstDifference(schema, now))
	}
}

// TestGivenUpTargetIsNotOpened: runner and guardian stand between the two COMMITs, and somebody gives
// the closed target up. The guardian, which had seen a closed source, must not open it any more; nor
// does the next apply.
func TestGivenUpTargetIsNotOpened(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.want(0, "apply", "-y", "--until", "arm")
	p := r.start("freeze.between@1:kill;freeze.resolving:stop", "apply", "-y")
	if o := p.end(); o.signal != syscall.SIGKILL {
		t.Fatalf("the runner did not die: %s", o.text)
	}
	r.eventually("the guardian is about to open the target", func() bool { return p.passed("freeze.resolving") > 0 && p.guardian() > 0 })
	r.says(r.want(0, alone...), "it answers, and is closed")
	r.writing(onSource)
	r.must(syscall.Kill(p.guardian(), syscall.SIGCONT))
	r.eventually("the guardian's word", func() bool { return strings.Contains(p.said(), "run the same command again") })
	r.says(p.said(), "guardian: the source takes writes")
	r.refused(r.target, "25006")
	r.writing(onSource)
	r.want(0, "apply", "-y") // nothing was lost: the cutover is made again
	r.writing(onTarget)
	r.same()
	r.balance(r.target)
}

// TestWhatCountsAsGone: what answers at the target's address decides. Only where nothing does, or a
// closed target, may the source be opened.
func TestWhatCountsAsGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.stop()
	major, _, err := testpg.PairMajors()
	r.must(err)
	proxy := testpg.ListenT(t, testpg.Shared(t, major))
	silent := testpg.ListenT(t, testpg.Shared(t, major))
	proxy.Refuse(true)
	silent.BlackHole(true)
	change := func(host string, port uint16, database, user string) string {
		config, err := pgx.ParseConfig(r.target)
		r.must(err)
		if host == "" {
			host, port = config.Host, config.Port
		}
		return fmt.Sprintf("postgresql://%s@%s:%d/%s?sslmode=disable&connect_timeout=3", user, host, port, cond(database == "", config.Database, database))
	}
	other := testpg.NewDB(t, testpg.Shared(t, major))
	for _, c := range []struct {
		what, url string
		gone      bool
		says      string
	}{
		{"no such name", change("nowhere.invalid", 5432, "", "postgres"), true, "no answer"},
		{"nobody listens", change("127.0.0.1", 9, "", "postgres"), true, "refused"},
		{"a proxy without a server", proxy.URL(r.target), true, "no answer"},
		{"silence", silent.URL(r.target) + "&connect_timeout=2", true, "no answer"},
		{"the database is gone", change("", 0, "no_such_database", "postgres"), true, "does not exist"},
		{"a role that may not connect", change("", 0, "", "no_such_role"), false, "something answers at its address"},
		{"another database", other, false, "has nothing of this run"},
		{"the target itself", r.target, false, "it answers and takes writes"},
	} {
		r.with("TARGET_URL", c.url)
		r.says(r.want(exitOf(c.gone), "rollback", "--without-target", "--check"), c.says)
		if c.gone {
			r.says(r.want(14, "rollback", "--without-target", "-y"), "--accept-loss")
		}
	}
	if proxy.Fired(testpg.FaultRefuse) == 0 || silent.Fired(testpg.FaultBlackHole) == 0 {
		t.Error("the proxies' faults did not fire")
	}
	r.with("TARGET_URL", r.target)
	r.refused(r.source, "25006")
	idle := r.connect(r.target)
	_, err = idle.Exec(context.Background(), "INSERT INTO app.bag VALUES (1, 'the target takes writes')")
	r.must(err)
	r.want(0, "rollback", "-y")
	r.same()
	r.balance(r.source)
}

func exitOf(well bool) int {
	if well {
		return 0
	}
	return 1
}

// guardian finds the stopped child of a dead process by the trace that both write; 0 is none.
func (p *process) guardian() int {
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	p.r.must(err)
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(text), "PGRUNBOOK_FAILPOINT_TRACE="+p.trace+"\x00") {
			continue // it has ended meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		p.r.must(err)
		if stateOf(pid) == "T" {
			return pid
		}
	}
	return 0
}
