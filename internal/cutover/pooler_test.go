package cutover_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// pooled is a rig whose application knows two pgbouncers and no server.
type pooled struct {
	*rig
	bouncers []*testpg.Bouncer
}

func newPooled(t *testing.T) *pooled {
	t.Helper()
	p := &pooled{rig: newIdleRig(t)}
	entry, err := testpg.BouncerEntry("", p.target)
	p.must(err)
	var text strings.Builder
	text.WriteString("rollback { keep_for = \"1h\" }\ncutover {\n  max_write_block = \"20s\"\n  attempts = 20\n  retry_every = \"300ms\"\n")
	for i := range 2 {
		b := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"erp": p.source}, Settings: map[string]string{"query_wait_timeout": "120"}})
		p.bouncers = append(p.bouncers, b)
		fmt.Fprintf(&text, "  pooler \"pgbouncer\" \"b%d\" {\n    admin = %q\n    database = \"erp\"\n    config_file = %q\n    connect = %q\n    timeout = \"10s\"\n  }\n",
			i, b.Console(testpg.BouncerAdmin), b.DatabasesFile, strings.TrimPrefix(entry, " = "))
	}
	says := func(word string) string {
		return fmt.Sprintf("[\"/bin/sh\", \"-c\", \"echo %s `grep -o port=[0-9]* %s` >> %s/says\"]", word, p.bouncers[0].DatabasesFile, p.dir)
	}
	fmt.Fprintf(&text, "  switch {\n    step \"exec\" \"says\" {\n      command = %s\n      undo = %s\n      timeout = \"9s\"\n    }\n  }\n}\n", says("there"), says("back"))
	p.write(text.String())
	return p
}

// where a pooler's entry leads, and whether it is paused.
func (p *pooled) where(b *testpg.Bouncer) (port string, paused bool) {
	p.t.Helper()
	config, err := pgx.ParseConfig(b.Console(testpg.BouncerAdmin))
	p.must(err)
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(p.t.Context(), config)
	p.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(p.t.Context(), "SHOW DATABASES")
	p.must(err)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (map[string]string, error) {
		out := map[string]string{}
		for i, f := range row.FieldDescriptions() {
			out[f.Name] = string(row.RawValues()[i])
		}
		return out, nil
	})
	p.must(err)
	i := slices.IndexFunc(list, func(d map[string]string) bool { return d["name"] == "erp" })
	return list[i]["port"], list[i]["paused"] != "0"
}

func port(r *rig, url string) string {
	config, err := pgx.ParseConfig(url)
	r.must(err)
	return strconv.Itoa(int(config.Port))
}

// leads demands that every pooler leads to a side and lets clients through.
func (p *pooled) leads(url string) {
	p.t.Helper()
	for i, b := range p.bouncers {
		p.eventually(fmt.Sprintf("pooler %d leads to %s", i, port(p.rig, url)), func() bool {
			to, paused := p.where(b)
			return to == port(p.rig, url) && !paused
		})
	}
}

// bench is pgbench at full speed through one pooler; each transaction writes to three tables. It runs
// in rounds, one after the other, until it is ended.
type bench struct {
	dir    string
	cancel chan struct{}
	ended  chan error
	out    bytes.Buffer
}

func (p *pooled) bench(b *testpg.Bouncer, seconds int) *bench {
	p.t.Helper()
	path, err := testpg.PgbenchPath(p.t.Context())
	p.must(err)
	n := &bench{dir: p.t.TempDir(), cancel: make(chan struct{}), ended: make(chan error, 1)}
	script := filepath.Join(n.dir, "script.sql")
	p.must(os.WriteFile(script, []byte("\\set i random(1, 900)\nBEGIN;\nUPDATE app.item SET net = net + 1 WHERE id = :i;\nINSERT INTO app.trail (text) VALUES ('bench');\nUPDATE app.event SET text = text WHERE id = :i;\nEND;\n"), 0o600))
	go func() {
		for {
			cmd := exec.CommandContext(p.t.Context(), path, "-n", "-c", "3", "-T", strconv.Itoa(seconds), "-l", "-f", script, b.URL("erp", "postgres"))
			cmd.Dir, cmd.Stdout, cmd.Stderr = n.dir, &n.out, &n.out
			err := cmd.Run()
			select {
			case <-n.cancel:
			default:
				if err == nil {
					continue
				}
			}
			n.ended <- err
			return
		}
	}()
	return n
}

// end waits for the last round and gives the number of transactions and the longest latency. None
// may have failed.
func (p *pooled) end(n *bench) (done int, longest time.Duration) {
	p.t.Helper()
	close(n.cancel)
	if err := <-n.ended; err != nil || strings.Contains(n.out.String(), "aborted") {
		p.t.Fatalf("pgbench: %v\n%s", err, &n.out)
	}
	rounds := strings.Count(n.out.String(), "number of failed transactions:")
	if fine := strings.Count(n.out.String(), "number of failed transactions: 0 (0.000%)"); fine != rounds || rounds == 0 {
		p.t.Errorf("pgbench, in %d rounds:\n%s", rounds, &n.out)
	}
	logs, err := filepath.Glob(filepath.Join(n.dir, "pgbench_log.*"))
	p.must(err)
	for _, name := range logs {
		text, err := os.ReadFile(name)
		p.must(err)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line) // client, transaction, latency in microseconds, ...
			us, err := strconv.ParseInt(f[2], 10, 64)
			p.must(err)
			done++
			longest = max(longest, time.Duration(us)*time.Microsecond)
		}
	}
	return done, longest
}

// TestR14PgbenchThroughTheCutover: pgbench runs at full speed behind two poolers through the whole
// cutover, and through the rollback. Not one transaction fails, and each is where it must be.
func TestR14PgbenchThroughTheCutover(t *testing.T) {
	t.Parallel()
	p := newPooled(t)
	p.want(0, "apply", "-y", "--until", "arm")
	const counted = "SELECT count(*)::text FROM app.trail WHERE text = 'bench'"
	total, there, seconds := 0, "0", 2
	if soak() {
		seconds = 20
	}
	for _, way := range []struct{ command, from, to string }{{"apply", p.source, p.target}, {"rollback", p.target, p.source}} {
		benches := []*bench{p.bench(p.bouncers[0], seconds), p.bench(p.bouncers[1], seconds)}
		p.eventually("pgbench writes", func() bool { return p.ask(way.from, counted) != there })
		p.says(p.want(0, way.command, "-y"), "2 poolers paused", "2 poolers repointed in", "did repoint the poolers", "2 poolers resumed in")
		flipped := p.ask(way.from, counted)
		p.eventually("pgbench writes on the other side", func() bool { return p.ask(way.to, counted) != flipped })
		for _, n := range benches {
			done, longest := p.end(n)
			total += done
			t.Logf("%s: %d transactions, none failed, longest latency %s", way.command, done, longest.Round(time.Millisecond))
		}
		if now := p.ask(way.from, counted); now != flipped {
			t.Errorf("%s transactions on the closed side, %s at the flip", now, flipped)
		}
		if there = p.ask(way.to, counted); there != strconv.Itoa(total) {
			t.Errorf("pgbench was told of %d transactions, and %s are there", total, there)
		}
		p.leads(way.to)
	}
	// What the way back took at the poolers is what another cutover is expected to take there.
	p.says(p.want(0, "status"), "pending verify: to be made again, since writes went back to the source", "Next: pgrunbook apply, which cuts over again; or pgrunbook abort", "writes wait in the cutover for", "to repoint the poolers", "before it the poolers' clients wait for PAUSE, which took", "after it for RESUME, which took")
	p.says(p.want(0, "status", "--certificate"), "poolers their clients waited", "before that: PAUSE, then connecting")
	// Forward the poolers come first, on the way back last.
	if got, at := p.read("says"), port(p.rig, p.target); got != fmt.Sprintf("there port=%s\nback port=%[1]s\n", at) {
		t.Errorf("when the switch step was made and undone the pooler led to: %q, want %s both times", got, at)
	}
}

const entries = "SELECT count(*)::text FROM ledger.entry"

// silent lets the network to a side fall silent when the poolers are paused and before the hold. Their clients are
// let go by the limit on what comes before it, while the silence lasts and the runner lives.
func (p *pooled) silent(proxy *testpg.Proxy, point string) {
	p.t.Helper()
	gone := filepath.Join(p.dir, fmt.Sprint("silent", p.runs))
	run := p.start(point+"@1:wait="+gone, "apply", "-y")
	p.eventually("waits at "+point, func() bool { _, err := os.Stat(gone + ".here"); return err == nil })
	for i, b := range p.bouncers {
		if _, paused := p.where(b); !paused {
			p.t.Errorf("at %s pooler %d is not paused", point, i)
		}
	}
	before, held := p.ask(p.source, entries), proxy.Fired(testpg.FaultBlackHole)
	proxy.BlackHole(true)
	began := time.Now()
	p.must(os.WriteFile(gone, nil, 0o600))
	p.leads(p.source)
	p.t.Logf("silence at %s: the poolers' clients were let go after %s", point, time.Since(began).Round(time.Millisecond))
	p.eventually("clients go on at the source", func() bool { return p.ask(p.source, entries) != before })
	if proxy.Fired(testpg.FaultBlackHole) == held {
		p.t.Errorf("at %s nothing was held back", point)
	}
	p.eventually("the attempt has ended", func() bool { return strings.Contains(run.said(), "no cutover this time") })
	run.signal(syscall.SIGTERM)
	proxy.Heal()
	if o := run.end(); o.code != 143 || run.passed("freeze.held") > 0 {
		p.t.Errorf("silence at %s: it ended with %d %v, writes were held %d times\n%s", point, o.code, o.signal, run.passed("freeze.held"), o.text)
	}
	p.says(run.said(), "attempt 1: no cutover this time: ", "writes go on at the source")
	if point == "pooler.paused" && !shortLimit.MatchString(run.said()) {
		p.t.Errorf("the limit was another one than that for paused clients:\n%s", run.said())
	}
	p.leads(p.source)
}

// shortLimit is less than the 10 s that an attempt has for its looks where nobody waits.
var shortLimit = regexp.MustCompile(`the looks before the hold took longer than [1-9](\.\d+)?s`)

// TestR14KilledBehindPoolers: a runner that dies after PAUSE leaves clients waiting in the poolers; the
// guardian lets them go on, at the side that takes writes. One whose network falls silent then lets them go on itself.
func TestR14KilledBehindPoolers(t *testing.T) {
	t.Parallel()
	p := newPooled(t)
	proxies := p.proxied()
	p.begin(p.bouncers[0].URL("erp", "postgres")+"&default_query_exec_mode=exec", p.bouncers[1].URL("erp", "postgres")+"&default_query_exec_mode=exec")
	p.want(0, "apply", "-y", "--until", "arm")
	p.silent(proxies[onSource], "pooler.paused")
	p.silent(proxies[onTarget], "freeze.prepared")
	if soak() {
		p.silent(proxies[onTarget], "pooler.paused")
		p.silent(proxies[onSource], "freeze.prepared")
	}
	for _, c := range []struct {
		point string
		to    string
	}{{"pooler.paused", p.source}, {"freeze.prepared", p.source}, {"freeze.switched", p.source}, {"freeze.between", p.target}} {
		run := p.start(c.point+":kill", "apply", "-y")
		if o := run.end(); o.signal != syscall.SIGKILL || run.passed(c.point) != 1 {
			t.Fatalf("it did not die at %s\n%s", c.point, o.text)
		}
		p.says(run.said(), "2 poolers paused")
		p.leads(c.to)
		before := p.ask(c.to, entries)
		p.eventually("clients go on", func() bool { return p.ask(c.to, entries) != before })
	}
	p.want(0, "apply", "-y")
	p.leads(p.target)
	p.balance(p.target)
	if s := p.ledger.Stats(); len(s.Errors) > 0 || s.Unknown > 0 {
		t.Errorf("clients behind a pooler saw errors: %v, %d unknown", s.Errors, s.Unknown)
	}
}
