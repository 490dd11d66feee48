package steps

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Only passes shrink the deltas, so a limit on their size must not make wait what passes wait for.
func TestDeltaLimitDoesNotStandInItsOwnWay(t *testing.T) {
	r := newRig(t, `limit "delta_size" { max = "8KiB" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, "UPDATE shop.customer SET name = name || '!'; INSERT INTO shop.customer SELECT g, 'more' FROM generate_series(1000, 3000) g; UPDATE shop.customer SET name = name || '?'")
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.same("shop.customer", "shop.invoice")
	if !r.heard("limit delta_size is over") {
		t.Error("the limit was never over: the test proves nothing")
	}
}

// What a load or a wait has left in the deltas goes in pieces to a target that nothing is proved of yet, with passes over what is loaded
// and with those before a comparison; exact passes take it at once where keys are validated meanwhile.
func TestLargeBacklogsGoInPieces(t *testing.T) {
	r := following(t, "")
	every, rows := followEvery, pieceRows
	followEvery, pieceRows = 20*time.Millisecond, 300
	defer func() { followEvery, pieceRows = every, rows }()
	const said = "captured changes are being applied"
	backlog := func(value string) {
		t.Helper()
		r.exec(r.source, "INSERT INTO shop.customer SELECT g, 'new' FROM generate_series(1000, 1399) g ON CONFLICT (id) DO UPDATE SET name = '"+value+"'")
		r.mu.Lock()
		r.events = nil
		r.mu.Unlock()
	}
	beside := func(value string, pieces bool) {
		t.Helper()
		backlog(value)
		cp := r.cursor(newCopy(r.env))
		ctx, limits, err := watchLimits(t.Context(), r.env, cp)
		r.must(err)
		defer limits.close()
		stop := followLoaded(ctx, r.env, limits, cp, pieces)
		defer stop()
		r.until(nil, "SELECT count(*)::text FROM shop.customer WHERE name = '"+value+"'", "400")
		if r.heard(said) != pieces {
			t.Errorf("beside a load: pieces were made: %v, want %v", !pieces, pieces)
		}
	}
	backlog("first")
	r.must(r.catchUp())
	beside("second", true)
	beside("third", false)
	backlog("fourth")
	r.must(r.walk(t.Context(), newVerify(r.env)))
	if !r.heard(said) {
		t.Error("no pieces were made before a comparison")
	}
	r.same("shop.customer", "shop.invoice")
}

// Small tables take far more room on disk than in COPY: what is done tells how much is left.
func TestExpectedLearnsFromWhatIsDone(t *testing.T) {
	for _, c := range []struct{ all, doneBytes, doneSize, want int64 }{
		{1000, 0, 0, 1000},
		{1000, 50, 500, 325},
		{1000, 90, 1000, 90},
		{1000, 90, 1200, 90},
		{400_000_000, 1500, 90_000, 399_823_019}, // two tiny tables say nothing of the large one
		{0, 10, 0, 10},
	} {
		if got := expected(c.all, c.doneBytes, c.doneSize); got != c.want {
			t.Errorf("expected(%d, %d, %d) = %d, want %d", c.all, c.doneBytes, c.doneSize, got, c.want)
		}
	}
}

// limitedSetup has a table of 20 MB, and a small one that is loaded before it where it is one chunk:
// they go by size on disk, and most of it is dead.
const limitedSetup = `
CREATE SCHEMA shop;
CREATE TABLE shop.lock (id int PRIMARY KEY);
CREATE TABLE shop.big (id int PRIMARY KEY, pad text NOT NULL);
ALTER TABLE shop.big ALTER pad SET STORAGE PLAIN;
INSERT INTO shop.big SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g;
CREATE TABLE shop.early (id int PRIMARY KEY, pad text NOT NULL) WITH (autovacuum_enabled = off);
ALTER TABLE shop.early ALTER pad SET STORAGE PLAIN;
INSERT INTO shop.early SELECT g, repeat('x', 1000) FROM generate_series(1, 25000) g;
DELETE FROM shop.early WHERE id > 100;`

const limitedRows = 20000

// limited is a load that a test slows down, so that there is time to look at it.
type limited struct {
	*rig
	ended chan error
}

func (l *limited) set(change func(*journal.Control)) {
	l.t.Helper()
	_, err := l.env.Journal.SetControl(l.t.Context(), "a person", change)
	l.must(err)
}

func (l *limited) setting(kind, value string) {
	l.t.Helper()
	l.set(func(c *journal.Control) {
		if c.Settings == nil {
			c.Settings = map[string]string{}
		}
		c.Settings[kind] = value
	})
}

// start runs steps beside the test.
func (l *limited) start(list ...engine.Step) {
	l.ended = make(chan error, 1)
	go func() { l.ended <- l.walk(l.t.Context(), list...) }()
}

func (l *limited) until(what string, is func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-l.ended:
			l.t.Fatalf("the load ended before this: %s: %v", what, err)
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (l *limited) copied() int { return l.number(l.target, "SELECT count(*) FROM shop.big") }

// TestCopyRate keeps the copy at a rate, lets it go, and pauses and stops one that is over it.
func TestCopyRate(t *testing.T) {
	const runbook = "copy {\n  workers = 2\n  chunk = \"256KiB\"\n}\nlimit \"copy_rate\" {\n  max = \"1MiB/s\"\n  then = %q\n}\n"
	rate := func(l *limited, during time.Duration) float64 { // rows of a kilobyte a second
		before, at := l.copied(), time.Now()
		for time.Since(at) < during && l.copied() < limitedRows {
			time.Sleep(20 * time.Millisecond)
		}
		return float64(l.copied()-before) / time.Since(at).Seconds()
	}
	for _, then := range []string{"slow", "pause", "stop"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			source, target := testpg.Pair(t)
			l := &limited{rig: newRigOn(t, source, target, limitedSetup, fmt.Sprintf(runbook, then))}
			l.stored()
			l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
			if then == "stop" {
				err := l.walk(t.Context(), newCopy(l.env))
				if err == nil || !strings.Contains(err.Error(), "over 1MiB/s") {
					t.Fatalf("over its rate the copy ended with %v", err)
				}
				return
			}
			if then == "pause" {
				l.setting("copy_rate", "2MiB/s") // does what the runbook's limit does
			}
			l.start(newCopy(l.env))
			l.until("rows are copied", func() bool { return l.copied() > 0 })
			limit := map[string]float64{"slow": 1048, "pause": 2097}[then]
			held := rate(l, 5*time.Second)
			if then == "pause" && !l.heard("limit copy_rate is over 2MiB/s: pause") {
				t.Error("no pause was said")
			}
			if then == "slow" {
				l.obeys()
			}
			l.setting("copy_rate", Unlimited)
			time.Sleep(2 * limitsEvery) // well within the 5 s in which a setting has to act
			free := rate(l, 5*time.Second)
			l.must(<-l.ended)
			t.Logf("%s: %.0f rows/s at a limit of %.0f, %.0f without", then, held, limit, free)
			if then == "slow" && held > 1.3*limit || then == "pause" && held > 3*limit {
				t.Errorf("%.0f rows/s were copied at a limit of %.0f", held, limit)
			}
			l.same("shop.big", "shop.early")
		})
	}
}
