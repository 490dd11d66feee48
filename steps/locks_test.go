package steps

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

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

const (
	ungated = "remove the target's gate"
	widened = "a carried column"
)

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
	cp    engine.Checkpoint
	alone time.Duration // what the application waited at most without us
}

func (b *lockBench) url(side engine.Side) string {
	if side == engine.Source {
		return b.source
	}
	return b.target
}

// TestLockMatrix holds every kind of lock against every act of ours that takes a strong one: the
// application goes on between our attempts, who is in the way is named, and when it has gone the act
// gets done. What the application waited at most is printed. Without PGRUNBOOK_FULL each act meets one
// kind, and each kind some acts.
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
	b.alone = control.end()
	t.Logf("%-36s %-22s longest wait %s", "nothing", "nobody", b.alone)
	for i, s := range b.lockSteps() {
		for j, k := range blockerKinds {
			if testpg.Full() || i%len(blockerKinds) == j {
				b.in(t, s.name+" against a "+k.name, func() { b.against(s, k) })
			}
		}
		if s.name == "arm the gate" {
			t.Run("R24 an autovacuum in the way of the gate", func(t *testing.T) { b.during(t, func() { b.againstAutovacuum(s, 2) }) })
		} else if s.table == "shop.customer" && testpg.Full() {
			b.in(t, s.name+" against an autovacuum", func() { b.againstAutovacuum(s, 10) }) // a new one may come meanwhile
		}
	}
	// What these take is in the logs too.
	for _, s := range b.lockSteps() {
		if strings.HasSuffix(s.name, ungated) || s.name == widened {
			b.must(s.again(t.Context()))
		}
	}
	b.must(b.walk(t.Context(), newReverse(b.env), newArm(b.env), newFreeze(b.env, nil)))
	b.must(b.walk(t.Context(), newRollback(b.env, nil)))
	b.must(b.env.Journal.Reopen(t.Context(), "freeze", true, "it is a test"))
	b.must(b.walk(t.Context(), newFreeze(b.env, nil), newFinish(b.env, FinishOptions{Now: true})))
	b.strongStatements(map[string]*testpg.Cluster{"source": source, "target": target})
}

// in runs a case under its own name.
func (b *lockBench) in(t *testing.T, name string, do func()) {
	t.Helper()
	t.Run(name, func(t *testing.T) { b.during(t, do) })
}

func (b *lockBench) during(t *testing.T, do func()) {
	whole := b.t
	b.t = t
	defer func() { b.t = whole }()
	do()
}

func (b *lockBench) lockSteps() []lockStep {
	env, ctx := b.env, b.t.Context()
	apply := func(s engine.Step) func(context.Context) error {
		return func(ctx context.Context) error { return s.Apply(ctx, engine.StepPlan{}, b.cp) }
	}
	sides, err := openSides(ctx, env, "test")
	b.must(err)
	b.t.Cleanup(func() { sides.close(context.Background()) })
	wait := waiting(b.cp, engine.Target, "test")
	uncapture := func(side engine.Side) func(context.Context) error {
		return func(ctx context.Context) error {
			return capture.Remove(ctx, env.Server(side), env.Run, waiting(b.cp, side, "test"))
		}
	}
	ungate := func(side engine.Side) func(context.Context) error {
		return func(ctx context.Context) error {
			return gate.Remove(ctx, env.Server(side), env.Run, waiting(b.cp, side, "test"))
		}
	}
	regate := func(ctx context.Context) error {
		if err := gate.Install(ctx, env.Target, env.Run, env.Scope.Tables, wait); err != nil {
			return err
		}
		return gate.CloseNow(ctx, sides.target, env.Run)
	}
	sql := func(text string) func(context.Context) error {
		return func(context.Context) error { return try(b.t, b.target, text) }
	}
	column := func(ctx context.Context) error {
		return runOn(ctx, sides.target, scope.Name{Schema: "shop", Name: "customer"}, wait, "ALTER TABLE shop.customer ADD COLUMN extra int")
	}
	// The order decides which kind each of them meets in the short form.
	return []lockStep{
		{"R25 remove capture", engine.Source, "shop.customer", true, uncapture(engine.Source), apply(newCapture(env))},
		{"F30 capture", engine.Source, "shop.customer", false, apply(newCapture(env)), uncapture(engine.Source)},
		{"arm the gate", engine.Source, "shop.customer", false, apply(newArm(env)), ungate(engine.Source)},
		{"R25 remove the gate", engine.Source, "shop.customer", true, ungate(engine.Source), apply(newArm(env))},
		{"R25 remove the way back's capture", engine.Target, "shop.customer", true, uncapture(engine.Target), apply(newReverse(env))},
		{"capture for the way back", engine.Target, "shop.customer", false, apply(newReverse(env)), uncapture(engine.Target)},
		{"R25 remove the target's gate", engine.Target, "shop.customer", true, ungate(engine.Target), regate},
		{"a foreign key", engine.Target, "shop.customer", false, apply(newConstraints(env)), sql("ALTER TABLE shop.invoice DROP CONSTRAINT IF EXISTS invoice_customer_fkey")},
		{"a materialized view", engine.Target, "shop.total", true, func(ctx context.Context) error { return refreshMaterialized(ctx, sides, b.cp) }, nil},
		{widened, engine.Target, "shop.customer", true, column, sql("ALTER TABLE shop.customer DROP COLUMN IF EXISTS extra")},
	}
}

// against lets one blocker stand in the way of one act.
func (b *lockBench) against(s lockStep, k blocker) {
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
	defer p.end()
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
	b.within(s.name, k.name, longest, 300*time.Millisecond)
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
func (b *lockBench) passesBetween(s lockStep, k blocker, p *appProbe, ended <-chan error) {
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

func (b *lockBench) within(step, kind string, longest, bound time.Duration) {
	b.t.Helper()
	b.t.Logf("%-36s %-22s longest wait %s", step, kind, longest)
	if longest > bound+max(2*time.Second, 10*b.alone) { // a slow machine is not what is tested
		b.t.Errorf("%s against a %s: the application waited %s, the bound is %s", step, kind, longest, bound)
	}
}

// againstAutovacuum: it gives way to a waiter of deadlock_timeout, once. It may be in the way of so many
// attempts.
func (b *lockBench) againstAutovacuum(s lockStep, most int) {
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
	defer p.end()
	err := s.do(b.t.Context())
	longest := p.end()
	b.must(err)
	if n := b.waits("autovacuum"); n == 0 || n > most {
		b.t.Errorf("the autovacuum was in the way of %d attempts, want 1: it gives way to nobody who is less patient", n)
	}
	b.within(s.name, "autovacuum", longest, 1300*time.Millisecond)
	b.exec(url, "ALTER TABLE "+s.table+" SET (autovacuum_enabled = off)") // the next act begins without one
}
