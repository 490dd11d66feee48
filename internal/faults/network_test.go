package faults_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// proxied puts a proxy between the program and each server; the application goes past it.
func (r *rig) proxied() (ways [2]*testpg.Proxy) {
	r.t.Helper()
	for i, url := range []string{r.source, r.target} {
		config, err := pgx.ParseConfig(url)
		r.must(err)
		p, err := testpg.Listen(r.t.Context(), fmt.Sprintf("%s:%d", config.Host, config.Port))
		r.must(err)
		r.t.Cleanup(func() {
			if err := p.Close(); err != nil {
				r.t.Error(err)
			}
		})
		ways[i], r.via[i] = p, p.URL(url)
	}
	return ways
}

// fires waits until a fault has had an effect once more than before.
func (r *rig) fires(p *testpg.Proxy, f testpg.Fault, before int) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); p.Fired(f) <= before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("the fault %q had no effect", f)
		}
	}
}

// TestF14CutInCopy resets connections in the middle of COPY, on either side and in either direction,
// after a random number of bytes.
func TestF14CutInCopy(t *testing.T) {
	t.Parallel()
	random := seed(t)
	r := newRig(t)
	ways := r.proxied()
	var p *process
	hits := 0
	for n := 0; n < cond(soak(), 60, 6); {
		side, direction := n%2, testpg.Direction(n/2%2)
		bulk := side == 0 && direction == testpg.ToClient || side == 1 && direction == testpg.ToServer
		bytes := 1 + random.Int64N(cond(bulk, int64(60_000), 400))
		if p == nil {
			p, hits = r.start("load.claimed:sleep=150ms", "apply", "--auto-approve", "--until", "copy"), 0
		}
		before := ways[side].Fired(testpg.FaultCutBytes)
		if hits += 2; p.passed("load.claimed", hits) {
			ways[side].CutAfter(direction, bytes)
			for ways[side].Fired(testpg.FaultCutBytes) == before && p.state() != "Z" {
				time.Sleep(5 * time.Millisecond)
			}
			ways[side].CutAfter(direction, 0)
		}
		if ways[side].Fired(testpg.FaultCutBytes) > before {
			t.Logf("side %d, direction %d: cut after %d bytes", side, direction, bytes)
			n++
			continue
		}
		o := p.end()
		if r.acceptable(o); o.code == 0 { // everything is loaded: once more
			r.finally(abortArgs...)
		}
		p = nil
	}
	if p != nil {
		r.acceptable(p.end())
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// A trouble is what a network does for a while.
type trouble struct {
	name  string
	fault testpg.Fault
	on    func(p *testpg.Proxy)
	lasts time.Duration // 0: until the process has ended by itself
	side  int           // in the short form
	phase string        // in the short form
}

var troubles = []trouble{
	{"F14 half-open, nothing comes back", testpg.FaultHalfOpen, func(p *testpg.Proxy) { p.HalfOpen(testpg.ToClient, true) }, 0, 1, "load.claimed"},
	{"F14 1 kB/s", testpg.FaultBandwidth, func(p *testpg.Proxy) { p.Bandwidth(1 << 10) }, 3 * time.Second, 0, "load.claimed"},
	{"F14 500 ms latency", testpg.FaultLatency, func(p *testpg.Proxy) { p.Latency(500 * time.Millisecond) }, 3 * time.Second, 1, "pass.staged"},
	{"F14 reset", testpg.FaultReset, func(p *testpg.Proxy) { p.Reset() }, time.Millisecond, 1, "freeze.held"},
	{"F14 half-open, nothing arrives", testpg.FaultHalfOpen, func(p *testpg.Proxy) { p.HalfOpen(testpg.ToServer, true) }, 0, 0, "gate.armed"},
	{"F14 black hole", testpg.FaultBlackHole, func(p *testpg.Proxy) { p.BlackHole(true) }, 0, 0, "freeze.held"},
}

// TestF14Network gives each side every trouble in every phase. Where nothing passes any more, the
// process ends by itself while the network is still gone, and nobody is blocked by what it left.
func TestF14Network(t *testing.T) {
	phases := []string{"schema.restored", "capture.triggers", "load.claimed", "pass.staged", "compare.opened", "gate.armed", "freeze.held", "freeze.passed"}
	for side := range 2 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ways := r.proxied()
			n := 0
			for _, phase := range phases {
				for _, c := range troubles {
					if soak() || c.side == side && c.phase == phase {
						n++
						r.troubled(ways[side], c, phase)
					}
				}
			}
			t.Logf("%d troubles on side %d", n, side)
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}

// troubled runs apply into a trouble that begins at a phase. A phase that this run does not pass any
// more is made to come again by an abort.
func (r *rig) troubled(way *testpg.Proxy, c trouble, phase string) {
	r.t.Helper()
	before := way.Fired(c.fault)
	p := r.start(phase+"@1:sleep=300ms;freeze.decided:kill", applyArgs...)
	if !p.passed(phase, 1) {
		p.end()
		r.finally(abortArgs...)
		p = r.start(phase+"@1:sleep=300ms;freeze.decided:kill", applyArgs...)
		if !p.passed(phase, 1) {
			r.t.Fatalf("the runner did not pass %s", phase)
		}
	}
	began := time.Now()
	c.on(way)
	r.fires(way, c.fault, before)
	if c.lasts > 0 {
		time.Sleep(c.lasts)
		way.Heal()
	}
	o := p.end()
	way.Heal()
	r.t.Logf("%s at %s: %s, %s after it began", c.name, phase, o, time.Since(began).Round(100*time.Millisecond))
	if o.signal == 0 { // else it died at the flip's edge, where the next run goes on
		r.acceptable(o)
	}
	if c.lasts == 0 && o.code == 0 {
		r.t.Errorf("%s at %s: done over a dead network", c.name, phase)
	}
	r.writing(0)
}

var cuts = []testpg.CommitCut{testpg.CommitNotSent, testpg.CommitUnanswered, testpg.CommitSilent}

// cutNext lets the next COMMIT on a side go without its answer, and waits until that has happened.
func (r *rig) cutNext(way *testpg.Proxy, how testpg.CommitCut) {
	r.t.Helper()
	before := way.Fired(testpg.FaultCommit)
	way.CutCommit(how, 0)
	r.fires(way, testpg.FaultCommit, before)
}

// TestF15LostAnswers cuts between a COMMIT and its answer: of chunks with their marks and of the end
// of their reads, of passes and of their forgetting. The outcome is looked up; a chunk is not loaded
// twice, and no key forgotten whose row was not applied.
func TestF15LostAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ways := r.proxied()
	upTo := func(step string) []string { return []string{"apply", "--auto-approve", "--until", step} }
	p, hits := r.start("load.copied:sleep=150ms", upTo("copy")...), 0
	for _, how := range cuts {
		for side := range 2 {
			if hits += 2; !p.passed("load.copied", hits) {
				r.acceptable(p.end())
				p, hits = r.start("load.copied:sleep=150ms", upTo("copy")...), 1
				if !p.passed("load.copied", hits) {
					t.Fatalf("no chunk is left for cut %d on side %d", how, side)
				}
			}
			r.cutNext(ways[side], how)
		}
	}
	r.acceptable(p.end())
	r.finally(upTo("copy")...)
	for _, how := range cuts {
		for side, at := range []string{"pass.committed", "pass.marked"} {
			r.writing(0)
			p := r.start(at+"@1:sleep=500ms", upTo("catch_up")...)
			if !p.passed(at, 1) {
				t.Fatalf("the runner did not pass %s", at)
			}
			r.cutNext(ways[side], how)
			o := p.end()
			t.Logf("F15 %s, cut %d: %s", at, how, o)
			r.acceptable(o)
		}
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF15LostFlip cuts between the COMMITs of the flip and their answers, on the way there and back.
// Whatever happened is found by looking at both gates.
func TestF15LostFlip(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ways := r.proxied()
	from := 0
	for _, how := range cond(soak(), cuts, cuts[1:2]) {
		for _, c := range []struct {
			at    string
			first bool // the COMMIT that closes, else the one that opens
		}{{"freeze.decided", true}, {"freeze.between", false}} {
			args := cond(from == 0, applyArgs, rollbackArgs)
			way := ways[cond(c.first, from, 1-from)]
			p := r.start(c.at+"@1:sleep=300ms", args...)
			if !p.passed(c.at, 1) {
				t.Fatalf("the runner did not come to %s", c.at)
			}
			r.cutNext(way, how)
			o := p.end()
			t.Logf("F15 %s, cut %d, from side %d: %s", c.at, how, from, o)
			if r.acceptable(o); o.code != 0 {
				r.finally(args...)
			}
			r.moved(from, 1-from)
			r.writing(1 - from)
			r.turn(1 - from)
			from = 1 - from
		}
	}
	r.balance(cond(from == 0, r.source, r.target))
}

// TestF14CutsAllTheTime lets no connection to either server carry more than 20 to 200 kB, but for one in six, from the
// first command to the last: each run goes on from where the one before was cut off, there and back. What pg_dump reads of
// the catalogs is three times as much, and in one piece.
func TestF14CutsAllTheTime(t *testing.T) {
	t.Parallel()
	random := seed(t)
	r := newRig(t)
	r.lean()
	r.sql(r.source, "INSERT INTO app.item (name, net) SELECT 'more ' || g, 1 FROM generate_series(1, 5000) g") // 2 MB
	ways := r.proxied()
	for _, way := range ways {
		mine := randomOf(random.Uint64())
		way.CutEvery(func() int64 { return cond(mine.IntN(6) == 0, 2_000_000, 20_000+mine.Int64N(180_000)) })
	}
	const most = 200
	for from, args := range [][]string{applyArgs, rollbackArgs} {
		runs := 1
		for ; ; runs++ {
			o := r.run("", args...)
			if o.code == 0 && o.signal == 0 {
				break
			}
			if r.acceptable(o); runs == most {
				t.Fatalf("%s does not get through in %d runs\n%s", args, runs, o.text)
			}
		}
		t.Logf("%s took %d runs; %d connections to the source and %d to the target were cut", args, runs, ways[0].Fired(testpg.FaultCutEvery), ways[1].Fired(testpg.FaultCutEvery))
		r.moved(from, 1-from)
		r.writing(1 - from)
		r.turn(1 - from)
	}
	for side, way := range ways {
		if n := way.Fired(testpg.FaultCutEvery); n < 10 {
			t.Errorf("%d connections on side %d were cut", n, side)
		}
	}
	r.balance(r.source)
}
