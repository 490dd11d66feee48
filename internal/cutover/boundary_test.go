package cutover_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// once has one attempt at the freeze: what fails before the flip ends the command. A switch step is
// there for its boundary. What the comparison passes is no part of the cutover.
const once = `
verify { enabled = false }
cutover {
  max_write_block = "10s"
  attempts        = 1
  sequence_margin = 100
  switch {
    step "exec" "point" {
      command = ["true"]
      undo    = ["true"]
      timeout = "5s"
    }
  }
}
rollback { keep_for = "1h" }
`

// wired is a rig whose program reaches both servers through proxies; the application does not.
type wired struct {
	*rig
	proxies [2]*testpg.Proxy
	side    int // that takes writes
}

// proxied puts a proxy between the program and each server.
func (r *rig) proxied() (proxies [2]*testpg.Proxy) {
	r.t.Helper()
	for i, at := range []string{r.source, r.target} {
		u, err := url.Parse(at)
		r.must(err)
		p, err := testpg.Listen(r.t.Context(), u.Host)
		r.must(err)
		r.t.Cleanup(func() { r.must(p.Close()) })
		proxies[i] = p
		r.env = append(r.env, []string{"SOURCE_URL=", "TARGET_URL="}[i]+p.URL(at))
	}
	return proxies
}

// newWired is ready for a cutover.
func newWired(t *testing.T) *wired {
	t.Helper()
	w := &wired{rig: newPairRig(t)}
	w.proxies = w.proxied()
	w.write(once)
	w.begin(w.source, w.target)
	w.want(0, "apply", "-y", "--until", "constraints")
	return w
}

// run makes a command of one attempt succeed: on a busy machine writers may not make room in time.
func (w *wired) run(args ...string) *process {
	w.t.Helper()
	for range 10 {
		p := w.start("", args...)
		switch o := p.end(); o.code {
		case 0:
			return p
		case 16:
		default:
			w.t.Fatalf("%v, undisturbed, ended with %d %v\n%s", args, o.code, o.signal, o.text)
		}
	}
	w.t.Fatalf("%v, undisturbed, found no room ten times", args)
	return nil
}

// way is one direction of the cutover with the boundaries that an undisturbed run passes.
type way struct {
	args     []string
	from, to int
	before   []string      // boundaries before anything is held
	freeze   []string      // from there on, in order
	gap      time.Duration // the application's longest, undisturbed
}

const begins, commits = "freeze.prepared", "freeze.between" // of the freeze; from's COMMIT has happened

// armed is passed where a gate's trigger is missing: in a later run only if somebody dropped it.
const armed = "gate.armed"

// discover makes one undisturbed run and reads its boundaries from its trace: a new one is covered
// without being named here.
func (w *wired) discover(from, to int, args ...string) way {
	w.t.Helper()
	w.ledger.TakeGap()
	p := w.run(args...)
	w.side = to
	w.writing(to)
	y := way{args: args, from: from, to: to, gap: w.ledger.TakeGap()}
	text, err := os.ReadFile(p.trace)
	w.must(err)
	into := &y.before
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		if name == begins {
			into = &y.freeze
		}
		if !slices.Contains(*into, name) {
			*into = append(*into, name)
		}
	}
	if len(y.freeze) < 15 || !slices.Contains(y.freeze, commits) || !slices.Contains(y.freeze, "pass.committed") {
		w.t.Fatalf("an undisturbed run passes only %v", y.freeze)
	}
	return y
}

// moved is whether from's COMMIT has happened at a boundary of the freeze.
func (y way) moved(point string) bool {
	return slices.Index(y.freeze, point) >= slices.Index(y.freeze, commits)
}

// Faults at a boundary.
const (
	killed      = "SIGKILL"
	stopped     = "SIGSTOP"
	blackSource = "black hole to the source"
	blackTarget = "black hole to the target"
	cut         = "connections reset"
)

var allFaults = []string{killed, blackSource, blackTarget, cut, stopped}

// reach lets a command run to a boundary where it is killed, stopped, or waits for the network to be
// disturbed. lift ends what lasts. A command that found no room for its one attempt is typed again.
func (w *wired) reach(y way, s strike) (p *process, lift func()) {
	w.t.Helper()
	where := s.point + "@1"
	if s.late {
		where = begins + "/" + where
	}
	var gone string
	for tries := 1; ; tries++ {
		gone = filepath.Join(w.dir, fmt.Sprintf("go%d", w.runs))
		act := map[string]string{killed: "kill", stopped: "stop"}[s.fault]
		if act == "" {
			act = "wait=" + gone
		}
		if s.point == armed {
			w.sql([]string{w.source, w.target}[y.from], "DROP TRIGGER IF EXISTS \"!pgrunbook_gate\" ON app.bag")
		}
		p = w.start(where+":"+act, y.args...)
		w.eventually(s.fault+" at "+s.point, func() bool {
			_, err := os.Stat(gone + ".here")
			return err == nil || p.state() == "T" || p.state() == "Z"
		})
		if p.state() != "Z" {
			break
		}
		o := p.end()
		if o.signal == syscall.SIGKILL && s.fault == killed {
			break
		}
		if o.code != 16 || tries == 10 {
			w.t.Fatalf("it did not come to %s: exit code %d %v\n%s", s.point, o.code, o.signal, o.text)
		}
	}
	switch s.fault {
	case killed:
		return p, func() {}
	case stopped:
		return p, func() {
			if p.state() != "T" {
				w.t.Errorf("stopped at %s it woke up by itself", s.point)
			}
			p.signal(syscall.SIGCONT)
		}
	default:
		lift = w.disturb(s)
		w.must(os.WriteFile(gone, nil, 0o600))
		return p, lift
	}
}

// longestGap leaves room for the second after which a server ends a silent hold, and for as much again as a busy
// machine needs.
const longestGap = 5 * time.Second

// strike lets a command run into a fault at a boundary, and looks where the application goes on: by
// itself while the fault lasts, but for the one state in which nobody can do anything.
func (w *wired) strike(y way, s strike) hit {
	w.t.Helper()
	w.ledger.TakeGap()
	p, lift := w.reach(y, s)
	began, expect, note := time.Now(), y.from, ""
	if s.late && y.moved(s.point) {
		expect = y.to
	}
	if s.point == commits && (s.fault == blackSource || s.fault == blackTarget) {
		w.neither()
		began = time.Now()
		lift()
		lift = func() {}
		w.writing(expect)
		note = fmt.Sprintf(", neither side meanwhile, over %s after the network was back", time.Since(began).Round(time.Millisecond))
	} else if s.late || s.fault != cut { // early it connects anew and goes on
		w.writing(expect)
	}
	w.guarded(y, s, p, expect)
	if s.fault == stopped && soak() {
		time.Sleep(10*time.Second - time.Since(began))
		w.writing(expect)
	}
	gap := w.ledger.TakeGap()
	// What holds writes ends within a second or so; a slow machine is not what is tested.
	if bound := longestGap + max(longestGap, 10*y.gap); gap > bound {
		w.t.Errorf("%s at %s: the application's longest gap was %s, more than %s; undisturbed it is %s", s.fault, s.point, gap, bound, y.gap)
	}
	lift()
	o := p.end()
	if (o.signal == syscall.SIGKILL) != (s.fault == killed) || !slices.Contains([]int{-1, 0, 1, 16}, o.code) && !(s.fault == stopped && o.code == 11) { // its guardian has replaced it
		w.t.Errorf("%s at %s: it ended with %d %v\n%s", s.fault, s.point, o.code, o.signal, o.text)
	}
	if o.code == 0 {
		expect = y.to
	}
	w.writing(expect)
	if w.side = expect; w.side == y.to && o.code != 0 {
		w.run(y.args...) // no other command goes on from there
	}
	h := hit{s, gap, fmt.Sprintf("%-9s %-18s %-25s gap %-7s writes at %-7s %s%s", y.args[0], s.point, s.fault, gap.Round(time.Millisecond),
		cond(expect == onSource, "source", "target"), cond(s.fault == killed, "killed", fmt.Sprintf("exit code %d", o.code)), note)}
	w.t.Log(h.text)
	return h
}

// guarded waits for the word of the guardian of a runner that was killed or stopped in a freeze. It
// opens a side between the COMMITs only.
func (w *wired) guarded(y way, s strike, p *process, expect int) {
	w.t.Helper()
	why := map[string]string{killed: "has died", stopped: "has fallen silent"}[s.fault]
	dismissed := slices.Index(y.freeze, s.point) >= slices.Index(y.freeze, "freeze.after")
	if why == "" || !s.late || dismissed {
		return
	}
	w.eventually("the guardian's word at "+s.point, func() bool { return strings.Contains(p.said(), "run the same command again") })
	w.says(p.said(), "guardian: the runner "+why, fmt.Sprintf("guardian: the %s takes writes", cond(expect == onSource, "source", "target")))
	if opened := p.passed("freeze.resolved"); (opened > 0) != (s.point == commits) {
		w.t.Errorf("%s at %s: the guardian opened a side %d times", s.fault, s.point, opened)
	}
}

// disturb begins a fault of the network and gives what ends it. Early in a command one side may have no
// connection yet.
func (w *wired) disturb(s strike) (lift func()) {
	switch fault := s.fault; fault {
	case blackSource, blackTarget:
		proxy := w.proxies[cond2(fault == blackSource, 0, 1)]
		before := proxy.Fired(testpg.FaultBlackHole)
		proxy.BlackHole(true)
		return func() {
			proxy.Heal()
			if proxy.Fired(testpg.FaultBlackHole) == before {
				w.t.Errorf("%s: nothing was held back", fault)
			}
		}
	default:
		source, target := w.proxies[0].Reset(), w.proxies[1].Reset()
		if source+target == 0 || s.late && source*target == 0 {
			w.t.Errorf("%d connections to the source were reset, and %d to the target", source, target)
		}
		return func() {}
	}
}

func cond2(yes bool, a, b int) int {
	if yes {
		return a
	}
	return b
}

// neither demands that no side takes writes while nobody can reach the one that would have to be
// opened, or the one that has to prove that it is closed.
func (w *wired) neither() {
	w.t.Helper()
	var before [2]int
	w.eventually("no side takes writes", func() bool {
		same := before == [2]int{w.acknowledged(0), w.acknowledged(1)}
		before = [2]int{w.acknowledged(0), w.acknowledged(1)}
		time.Sleep(300 * time.Millisecond)
		return same
	})
	w.refused(w.source, "25006")
	if err := w.try(w.target, "SET lock_timeout = '3s'; SET default_transaction_read_only = off; INSERT INTO app.bag VALUES (1, 'by mistake')"); err == nil {
		w.t.Error("the target took a write")
	}
}

// on makes a side the one that takes writes, without a fault.
func (w *wired) on(side int, ways [2]way) {
	w.t.Helper()
	if w.side != side {
		y := ways[1-side]
		w.run(y.args...)
		w.side = side
		w.writing(side)
	}
}

type strike struct {
	point, fault string
	late         bool // in the freeze, if the boundary is also passed before it
}

// sideBySide is how many migrations bear the strikes of the long form.
const sideBySide = 5

// TestEveryBoundary: at every boundary of the cutover and of the rollback, whatever befalls the runner,
// the application writes on by itself, on exactly one side, and loses nothing.
func TestEveryBoundary(t *testing.T) {
	t.Parallel()
	for range cond2(soak(), cap(slots), 1) { // the long form keeps the cores busy by itself
		slots <- struct{}{}
		t.Cleanup(func() { <-slots })
	}
	var ways [2]way
	var a *assault
	known := make(chan struct{}) // ways and a are, or never will be
	var together sync.WaitGroup  // whatever -parallel says: most of them stand still
	together.Go(func() {
		t.Run("migration 0", func(t *testing.T) {
			found := sync.OnceFunc(func() { close(known) })
			defer found()
			w := newWired(t)
			ways = [2]way{w.discover(onSource, onTarget, "apply", "-y"), w.discover(onTarget, onSource, "rollback", "-y")}
			t.Logf("the cutover passes %d boundaries before the freeze and %d in it, the rollback %d and %d", len(ways[0].before), len(ways[0].freeze), len(ways[1].before), len(ways[1].freeze))
			a = strikes(ways)
			found()
			a.on(w, ways)
		})
	})
	for i := 1; i < cond2(soak(), sideBySide, 1); i++ {
		together.Go(func() {
			if <-known; a != nil {
				t.Run(fmt.Sprint("migration ", i), func(t *testing.T) { a.on(newWired(t), ways) })
			}
		})
	}
	together.Wait()
	if a == nil {
		return // it has said why
	}
	if len(a.left[0])+len(a.left[1]) > 0 && !t.Failed() {
		t.Errorf("%d strikes were not made", len(a.left[0])+len(a.left[1]))
	}
	t.Logf("the application's longest gap:\n%s", a.summary())
}
