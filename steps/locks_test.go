package steps

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const lockedSetup = `
CREATE SCHEMA shop;
CREATE TABLE shop.lock (id int PRIMARY KEY);
CREATE TABLE shop.customer (id int PRIMARY KEY, name text NOT NULL) WITH (autovacuum_enabled = off);
CREATE TABLE shop.invoice (id int PRIMARY KEY, customer int REFERENCES shop.customer, pad text) WITH (autovacuum_enabled = off);
CREATE MATERIALIZED VIEW shop.total AS SELECT count(*) AS n FROM shop.customer;
INSERT INTO shop.customer SELECT g, 'c' || g FROM generate_series(1, 4000) g;
INSERT INTO shop.invoice SELECT g, g FROM generate_series(1, 50) g;`

// slowVacuum makes an autovacuum of any table take longer than a test.
var slowVacuum = map[string]string{
	"autovacuum_naptime": "1s", "autovacuum_vacuum_cost_delay": "100ms", "autovacuum_vacuum_cost_limit": "1", "deadlock_timeout": "1s",
	"max_prepared_transactions": "10", "log_statement": "all", "log_line_prefix": "<%p|%a|%d> ",
}

// blocker holds a lock on a table as an application may.
type blocker struct {
	name   string
	named  string // what the product calls it
	writes bool
	begin  func(b *lockBench, url, table string) (end func())
}

var blockerKinds = []blocker{
	{"long reader", "the application", false, func(b *lockBench, url, table string) func() {
		return b.open(url, "SELECT count(*) FROM "+table)
	}},
	{"long writer", "the application", true, func(b *lockBench, url, table string) func() {
		conn := b.connect(url)
		b.run(conn, "BEGIN", "UPDATE "+table+" SET id = id WHERE id = 1")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = conn.Exec(context.Background(), "SELECT pg_sleep(600)") // ends with its connection
		}()
		return func() {
			_ = conn.PgConn().CancelRequest(context.Background())
			<-done
			_ = conn.Close(context.Background())
		}
	}},
	{"idle in transaction", "idle in transaction", true, func(b *lockBench, url, table string) func() {
		return b.open(url, "UPDATE "+table+" SET id = id WHERE id = 1")
	}},
	{"prepared transaction", "prepared transaction", true, func(b *lockBench, url, table string) func() {
		conn := b.connect(url)
		b.run(conn, "BEGIN", "UPDATE "+table+" SET id = id WHERE id = 1", "PREPARE TRANSACTION 'forgotten'")
		return func() { b.run(conn, "ROLLBACK PREPARED 'forgotten'"); _ = conn.Close(context.Background()) }
	}},
}

// lockStep is one act of ours that takes a strong lock.
type lockStep struct {
	name      string
	on        engine.Side
	table     string
	exclusive bool // also readers are in its way
	do        func(ctx context.Context) error
	again     func(ctx context.Context) error // makes do possible once more
}

type lockBench struct {
	*rig
	cp engine.Checkpoint
}

func (b *lockBench) url(side engine.Side) string {
	if side == engine.Source {
		return b.source
	}
	return b.target
}

// connect opens a session of the application; the mark lets it pass a closed gate.
func (b *lockBench) connect(url string) *pgx.Conn {
	b.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	b.must(err)
	b.run(conn, "SET application_name = 'the application'", "SELECT set_config('pgrunbook.mark', '"+b.env.Run.Mark+"', false)")
	return conn
}

func (b *lockBench) run(conn *pgx.Conn, statements ...string) {
	b.t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			b.t.Fatalf("%s: %v", sql, err)
		}
	}
}

func (b *lockBench) open(url, sql string) (end func()) {
	conn := b.connect(url)
	b.run(conn, "BEGIN", sql)
	return func() { _ = conn.Close(context.Background()) }
}

// probe is an application's reader and writer; longest is what one statement took at most.
type probe struct {
	stop    chan struct{}
	wait    sync.WaitGroup
	done    [2]atomic.Int64
	longest atomic.Int64
}

func (b *lockBench) probe(url, table string) *probe {
	p := &probe{stop: make(chan struct{})}
	for i, sql := range []string{"SELECT count(*) FROM " + table + " WHERE id = 7", "UPDATE " + table + " SET id = id WHERE id = 7"} {
		conn := b.connect(url)
		p.wait.Go(func() {
			defer func() { _ = conn.Close(context.Background()) }()
			for {
				select {
				case <-p.stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				start := time.Now()
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					b.t.Errorf("the application's %s: %v", sql, err)
					return
				}
				p.done[i].Add(1)
				for took := time.Since(start).Nanoseconds(); ; {
					old := p.longest.Load()
					if took <= old || p.longest.CompareAndSwap(old, took) {
						break
					}
				}
			}
		})
	}
	return p
}

func (p *probe) end() time.Duration {
	close(p.stop)
	p.wait.Wait()
	return time.Duration(p.longest.Load()).Round(time.Millisecond)
}

func (p *probe) counts() [2]int64 { return [2]int64{p.done[0].Load(), p.done[1].Load()} }

// TestLockMatrix holds every kind of lock against every act of ours that takes a strong one: the
// application goes on between our attempts, who is in the way is named, and when it has gone the act
// gets done. What the application waited at most is printed.
func TestLockMatrix(t *testing.T) {
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	source := testpg.StartT(t, testpg.Options{Major: sourceMajor, Settings: slowVacuum})
	target := testpg.StartT(t, testpg.Options{Major: targetMajor, Settings: slowVacuum})
	b := &lockBench{rig: newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, target), lockedSetup, "schema { on_ddl = \"carry\" }")}
	b.cp = b.env.Journal.Checkpoint("test", b.env.Sink)
	b.must(b.walk(t.Context(), newSchema(b.env), newCapture(b.env), newCopy(b.env), newCatchUp(b.env), newConstraints(b.env)))

	control := b.probe(b.source, "shop.customer")
	time.Sleep(time.Second)
	alone := control.end()
	t.Logf("%-22s %-22s longest wait %s", "nothing", "nobody", alone)
	steps := b.lockSteps()
	for _, s := range steps {
		for _, k := range blockerKinds {
			b.against(s, k, alone)
		}
	}
	b.againstAutovacuum(steps[0], alone)
	b.strongStatements(map[string]*testpg.Cluster{"source": source, "target": target})
}

func (b *lockBench) lockSteps() []lockStep {
	env, ctx := b.env, b.t.Context()
	wait := waiting(b.cp, "test")
	apply := func(s engine.Step) func(context.Context) error {
		return func(ctx context.Context) error { return s.Apply(ctx, engine.StepPlan{}, b.cp) }
	}
	target, err := openSides(ctx, env, "test")
	b.must(err)
	b.t.Cleanup(func() { target.close(context.Background()) })
	uncapture := func(side engine.Side) func(context.Context) error {
		return func(ctx context.Context) error { return capture.Remove(ctx, env.Server(side), env.Run, wait) }
	}
	ungate := func(side engine.Side) func(context.Context) error {
		return func(ctx context.Context) error { return gate.Remove(ctx, env.Server(side), env.Run, wait) }
	}
	regate := func(ctx context.Context) error {
		if err := gate.Install(ctx, env.Target, env.Run, env.Scope.Tables, wait); err != nil {
			return err
		}
		return gate.CloseNow(ctx, target.target, env.Run)
	}
	sql := func(text string) func(context.Context) error {
		return func(context.Context) error { return try(b.t, b.target, text) }
	}
	column := func(ctx context.Context) error {
		return runOn(ctx, target.target, scope.Name{Schema: "shop", Name: "customer"}, wait, "ALTER TABLE shop.customer ADD COLUMN extra int")
	}
	return []lockStep{
		{"remove capture", engine.Source, "shop.customer", true, uncapture(engine.Source), apply(newCapture(env))},
		{"capture", engine.Source, "shop.customer", false, apply(newCapture(env)), uncapture(engine.Source)},
		{"arm the gate", engine.Source, "shop.customer", false, apply(newArm(env)), ungate(engine.Source)},
		{"remove the gate", engine.Source, "shop.customer", true, ungate(engine.Source), apply(newArm(env))},
		{"capture for the way back", engine.Target, "shop.customer", false, apply(newReverse(env)), uncapture(engine.Target)},
		{"remove that capture", engine.Target, "shop.customer", true, uncapture(engine.Target), apply(newReverse(env))},
		{"remove the target's gate", engine.Target, "shop.customer", true, ungate(engine.Target), regate},
		{"a foreign key", engine.Target, "shop.customer", false, apply(newConstraints(env)), sql("ALTER TABLE shop.invoice DROP CONSTRAINT IF EXISTS invoice_customer_fkey")},
		{"a carried column", engine.Target, "shop.customer", true, column, sql("ALTER TABLE shop.customer DROP COLUMN IF EXISTS extra")},
		{"a materialized view", engine.Target, "shop.total", true, func(ctx context.Context) error { return refreshMaterialized(ctx, target, b.cp) }, nil},
	}
}

// against lets one blocker stand in the way of one act.
func (b *lockBench) against(s lockStep, k blocker, alone time.Duration) {
	b.t.Helper()
	if s.table == "shop.total" && k.writes {
		return // nobody writes to a materialized view
	}
	if s.again != nil {
		b.must(s.again(b.t.Context()))
	}
	blocks := s.exclusive || k.writes
	b.mu.Lock()
	b.events = nil
	b.mu.Unlock()
	url := b.url(s.on)
	probed := s.table
	if probed == "shop.total" {
		probed = "shop.customer"
	}
	end := k.begin(b, url, s.table)
	var once sync.Once
	free := func() { once.Do(end) }
	defer free()
	p := b.probe(url, probed)
	ended := make(chan error, 1)
	go func() { ended <- s.do(b.t.Context()) }()
	if blocks {
		b.passesBetween(s, k, p, ended)
		free()
	}
	var err error
	select {
	case err = <-ended:
	case <-time.After(2 * time.Minute):
		b.t.Fatalf("%s against a %s: it never ended", s.name, k.name)
	}
	longest := p.end()
	if err != nil {
		b.t.Fatalf("%s against a %s: %v", s.name, k.name, err)
	}
	if !blocks && b.waits("") > 0 {
		b.t.Errorf("%s waited for a %s, which is not in its way", s.name, k.name)
	}
	b.within(s.name, k.name, longest, 300*time.Millisecond, alone)
}

// waits counts what was said of attempts that got no lock and that name somebody.
func (b *lockBench) waits(who string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if e.Kind == engine.EventWaiting && e.Reason == "lock" && strings.Contains(strings.Join(e.Blockers, " "), who) {
			n++
		}
	}
	return n
}

// passesBetween waits for three attempts that name the blocker, and demands that the application got
// through meanwhile: a naive wait would let nobody by, and say nothing.
func (b *lockBench) passesBetween(s lockStep, k blocker, p *probe, ended <-chan error) {
	b.t.Helper()
	until := func(n int) {
		for deadline := time.Now().Add(time.Minute); b.waits(k.named) < n; time.Sleep(5 * time.Millisecond) {
			select {
			case err := <-ended:
				b.t.Fatalf("%s against a %s: it ended with %v and named nobody", s.name, k.name, err)
			default:
			}
			if time.Now().After(deadline) {
				b.t.Fatalf("%s against a %s: nobody is named", s.name, k.name)
			}
		}
	}
	until(1)
	before := p.counts()
	until(3)
	if now := p.counts(); now[0] == before[0] || now[1] == before[1] {
		b.t.Errorf("%s against a %s: between three attempts the application read %d times and wrote %d times", s.name, k.name, now[0]-before[0], now[1]-before[1])
	}
}

func (b *lockBench) within(step, kind string, longest, bound, alone time.Duration) {
	b.t.Helper()
	b.t.Logf("%-26s %-22s longest wait %s", step, kind, longest)
	if longest > bound+max(2*time.Second, 10*alone) { // a slow machine is not what is tested
		b.t.Errorf("%s against a %s: the application waited %s, the bound is %s", step, kind, longest, bound)
	}
}

// againstAutovacuum: it gives way to a waiter of deadlock_timeout, once.
func (b *lockBench) againstAutovacuum(s lockStep, alone time.Duration) {
	b.t.Helper()
	b.must(s.again(b.t.Context()))
	url := b.url(s.on)
	b.exec(url, "ALTER TABLE "+s.table+" SET (autovacuum_enabled = on, autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0); SET pgrunbook.mark = '"+b.env.Run.Mark+"'; UPDATE "+s.table+" SET name = name || '.'")
	conn := b.connect(url)
	defer func() { _ = conn.Close(context.Background()) }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var there bool
		b.must(conn.QueryRow(b.t.Context(), "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.backend_type = 'autovacuum worker' AND l.relation = $1::regclass AND l.mode = 'ShareUpdateExclusiveLock')", s.table).Scan(&there))
		if there {
			break
		}
		if time.Now().After(deadline) {
			b.t.Fatal("no autovacuum came")
		}
	}
	b.mu.Lock()
	b.events = nil
	b.mu.Unlock()
	p := b.probe(url, s.table)
	err := s.do(b.t.Context())
	longest := p.end()
	b.must(err)
	if b.waits("autovacuum") == 0 {
		b.t.Error("the autovacuum was not named")
	}
	b.within(s.name, "autovacuum", longest, 1300*time.Millisecond, alone)
}

var (
	logLine  = regexp.MustCompile(`^<(\d+)\|([^|]*)\|[^>]*> LOG:  (?:statement|execute [^:]*): (.*)`)
	strong   = regexp.MustCompile(`(?i)^\s*(CREATE TRIGGER|DROP TRIGGER|ALTER TABLE|TRUNCATE|LOCK TABLE|CREATE (UNIQUE )?INDEX|REFRESH|DROP TABLE|DROP INDEX|CREATE RULE|CREATE POLICY|REINDEX|CLUSTER|DROP SCHEMA)`)
	timeout  = regexp.MustCompile(`(?i)lock_timeout = '?(\d+)`)
	endOfTx  = regexp.MustCompile(`(?i)^\s*(commit|rollback)\s*;?$`)
	harmless = regexp.MustCompile(`(?i)pgrunbook\.|"pgrunbook"\.|ACCESS SHARE MODE|VALIDATE CONSTRAINT|SCHEMA pgrunbook`)
)

// strongStatements reads both servers' logs: every statement of ours that takes a strong lock on a
// table of the application ran under a lock_timeout that was set right before it.
func (b *lockBench) strongStatements(clusters map[string]*testpg.Cluster) {
	b.t.Helper()
	kinds := map[string]int{}
	for side, c := range clusters {
		type session struct {
			local, whole string
		}
		sessions := map[string]*session{}
		for line := range strings.Lines(c.Log()) {
			m := logLine.FindStringSubmatch(line)
			if m == nil || !strings.HasPrefix(m[2], "pgrunbook") {
				continue
			}
			s := sessions[m[1]]
			if s == nil {
				s = &session{}
				sessions[m[1]] = s
			}
			text := strings.TrimSpace(m[3])
			if set := timeout.FindStringSubmatch(text); set != nil {
				if strings.Contains(text, "LOCAL") {
					s.local = set[1]
				} else {
					s.whole = set[1]
				}
			}
			if kind := strong.FindString(text); kind != "" && !harmless.MatchString(text) {
				kinds[side+" "+strings.ToUpper(strings.TrimSpace(kind))]++
				if now := max(s.local, s.whole); now == "" || now == "0" {
					b.t.Errorf("on the %s %s ran without a lock_timeout: %s", side, m[2], text)
				}
			}
			if endOfTx.MatchString(text) {
				s.local = ""
			}
		}
	}
	if len(kinds) < 6 {
		b.t.Errorf("only these statements were found: %v", kinds)
	}
	names := make([]string, 0, len(kinds))
	for k, n := range kinds {
		names = append(names, fmt.Sprintf("%s (%d)", k, n))
	}
	slices.Sort(names)
	b.t.Logf("statements of ours with a strong lock on a table of the application: %s", strings.Join(names, ", "))
}
