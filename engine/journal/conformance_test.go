package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// twin is one implementation of engine.Journal under the conformance suite, with the world that
// steps act on.
type twin struct {
	plan    func() *engine.Plan
	fresh   func(t *testing.T) engine.Journal // a new run in an empty world
	reopen  func(t *testing.T) engine.Journal // the same run in a new process
	effect  func(ctx context.Context, cp engine.Checkpoint, step string, n int, crash func() error) error
	effects func(t *testing.T) []string // what was done, in order
	costly  bool                        // a walk takes seconds
}

func TestConformance(t *testing.T) {
	t.Run("memory", func(t *testing.T) { conform(t, memoryTwin()) })
	t.Run("target", func(t *testing.T) { conform(t, targetTwin(t)) })
}

func conform(t *testing.T, w twin) {
	t.Run("steps", func(t *testing.T) { conformSteps(t, w.fresh(t)) })
	t.Run("cursors", func(t *testing.T) { conformCursors(t, w.fresh(t)) })
	t.Run("approvals", func(t *testing.T) { conformApprovals(t, w.fresh(t)) })
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash at k, write made %t", after), func(t *testing.T) { crashAtEveryK(t, w, after) })
	}
}

func conformSteps(t *testing.T, j engine.Journal) {
	ctx := t.Context()
	s := &scripted{id: "copy", fingerprint: "f1"}
	if err := j.End(ctx, "copy", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("ending a step that did not begin: %v", err)
	}
	begin := func(state engine.StepState) {
		t.Helper()
		rec, err := j.Begin(ctx, s)
		if err != nil || rec.State != state || rec.ID != "copy" || rec.Started.IsZero() {
			t.Fatalf("begin: %+v, %v; want %s", rec, err, state)
		}
	}
	begin(engine.StepRunning)
	begin(engine.StepRunning) // of a process that died
	if err := j.End(ctx, "copy", errors.New("no space")); err != nil {
		t.Fatal(err)
	}
	s.fingerprint = "f2" // mended before it had a cursor
	begin(engine.StepRunning)
	for range 2 { // the second after a lost acknowledgement
		if err := j.End(ctx, "copy", nil); err != nil {
			t.Fatal(err)
		}
	}
	begin(engine.StepDone)
	if err := j.End(ctx, "copy", errors.New("late")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("failing a done step: %v", err)
	}
	s.fingerprint = "f3"
	if _, err := j.Begin(ctx, s); engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("a done step with another fingerprint: %v", err)
	}
}

func conformCursors(t *testing.T, j engine.Journal) {
	ctx := t.Context()
	type cursor struct{ Next int }
	var emitted []engine.Event
	cp := j.Checkpoint("copy", engine.SinkFunc(func(e engine.Event) { emitted = append(emitted, e) }))
	var got cursor
	if ok, err := cp.Load(ctx, &got); ok || err != nil {
		t.Fatalf("a cursor of a step that did not begin: %t, %v", ok, err)
	}
	if err := cp.Save(ctx, nil, cursor{1}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("saving before the begin: %v", err)
	}
	s := &scripted{id: "copy", fingerprint: "f1"}
	if _, err := j.Begin(ctx, s); err != nil {
		t.Fatal(err)
	}
	if ok, err := cp.Load(ctx, &got); ok || err != nil {
		t.Fatalf("a cursor before the first save: %t, %v", ok, err)
	}
	for _, n := range []int{7, 8, 8} {
		if err := cp.Save(ctx, nil, cursor{n}); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := cp.Load(ctx, &got); !ok || err != nil || got.Next != 8 {
		t.Fatalf("the cursor is %+v, %t, %v", got, ok, err)
	}
	if err := j.End(ctx, "copy", errors.New("killed")); err != nil {
		t.Fatal(err)
	}
	if err := cp.Save(ctx, nil, cursor{9}); err != nil {
		t.Errorf("who takes back what a failed step did says so: %v", err)
	}
	if _, err := cp.Load(ctx, &got); err != nil || got.Next != 9 {
		t.Errorf("the cursor of a failed step is %+v, %v", got, err)
	}
	s.fingerprint = "f2"
	if _, err := j.Begin(ctx, s); engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("a half done step with another fingerprint: %v", err)
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Message: "hello"})
	if len(emitted) != 1 || emitted[0].Step != "copy" || emitted[0].Message != "hello" || emitted[0].At.IsZero() {
		t.Errorf("emitted %+v", emitted)
	}
}

func conformApprovals(t *testing.T, j engine.Journal) {
	ctx := t.Context()
	at := time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
	for i, by := range []string{"anna", "bert"} {
		if err := j.Approve(ctx, engine.Approval{Name: "go", By: by, At: at.Add(time.Duration(i) * time.Minute), PlanDigest: "d1"}); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := j.Approval(ctx, "go", "d1")
	if err != nil || !ok || got.By != "bert" || !got.At.Equal(at.Add(time.Minute)) || got.Name != "go" || got.PlanDigest != "d1" {
		t.Errorf("the newest approval: %+v, %t, %v", got, ok, err)
	}
	for _, c := range [][2]string{{"go", "d2"}, {"stop", "d1"}} {
		if _, ok, err := j.Approval(ctx, c[0], c[1]); ok || err != nil {
			t.Errorf("approval %v: %t, %v", c, ok, err)
		}
	}
}

var errCrash = errors.New("the process died")

// crasher dies at the k-th durable write: before it, or after it without its acknowledgement.
type crasher struct {
	engine.Journal
	left  int
	after bool
	fired bool
}

// at runs one write.
func (c *crasher) at(write func() error) error {
	if c.fired {
		return errCrash
	}
	if c.left--; c.left > 0 {
		return write()
	}
	c.fired = true
	if c.after {
		if err := write(); err != nil {
			return err
		}
	}
	return errCrash
}

func (c *crasher) Begin(ctx context.Context, s engine.Step) (rec engine.StepRecord, err error) {
	err = c.at(func() error { rec, err = c.Journal.Begin(ctx, s); return err })
	return rec, err
}

func (c *crasher) End(ctx context.Context, id engine.StepID, cause error) error {
	return c.at(func() error { return c.Journal.End(ctx, id, cause) })
}

func (c *crasher) Approve(ctx context.Context, a engine.Approval) error {
	return c.at(func() error { return c.Journal.Approve(ctx, a) })
}

func (c *crasher) Checkpoint(id engine.StepID, sink engine.Sink) engine.Checkpoint {
	return &crashingCheckpoint{Checkpoint: c.Journal.Checkpoint(id, sink), c: c}
}

type crashingCheckpoint struct {
	engine.Checkpoint
	c *crasher
}

func (p *crashingCheckpoint) Save(ctx context.Context, tx pgx.Tx, cursor any) error {
	return p.c.at(func() error { return p.Checkpoint.Save(ctx, tx, cursor) })
}

// approved is a step that a person must allow.
type approved struct{ scripted }

func (a *approved) Approval() engine.ApprovalRequest {
	return engine.ApprovalRequest{Name: "go", Message: "Really?"}
}

const chunks = 4

// script makes the walk's steps: each records its effects in the world. after is where a crash
// can hit once a transaction is committed.
func script(w twin, commit func() error) []engine.Step {
	load := func(step string) func(context.Context, engine.Checkpoint) error {
		return func(ctx context.Context, cp engine.Checkpoint) error {
			var next int
			if _, err := cp.Load(ctx, &next); err != nil {
				return err
			}
			for ; next < chunks; next++ {
				if err := w.effect(ctx, cp, step, next, commit); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []engine.Step{
		&scripted{id: "load", fingerprint: "l", apply: load("load")},
		&approved{scripted{id: "switch", fingerprint: "s", apply: load("switch")}},
		&scripted{id: "verify", fingerprint: "v", apply: load("verify")},
	}
}

func crashAtEveryK(t *testing.T, w twin, after bool) {
	var want []string
	for _, s := range []string{"load", "switch", "verify"} {
		for n := range chunks {
			want = append(want, fmt.Sprintf("%s %d", s, n))
		}
	}
	walk := func(j engine.Journal, commit func() error) error {
		plan := w.plan()
		asked := func(context.Context, engine.ApprovalRequest) (string, error) { return "anna", nil }
		_, err := (&engine.Walk{Plan: plan, Digest: plan.Digest(), Steps: script(w, commit), Journal: j, Sink: discard, Ask: asked}).Run(t.Context())
		return err
	}
	step := 1
	if w.costly && !testpg.Full() {
		step = 4 // every k is walked on the twin in memory
	}
	for k := 1; ; k += step {
		c := &crasher{Journal: w.fresh(t), left: k, after: after}
		err := walk(c, func() error { return c.at(func() error { return nil }) })
		if c.fired {
			if !errors.Is(err, errCrash) {
				t.Fatalf("k=%d: the walk went on after the crash: %v", k, err)
			}
			if err := walk(w.reopen(t), func() error { return nil }); err != nil {
				t.Fatalf("k=%d: the second walk: %v", k, err)
			}
		} else if err != nil {
			t.Fatalf("k=%d: the walk without a crash: %v", k, err)
		}
		if diff := cmp.Diff(want, w.effects(t)); diff != "" {
			t.Fatalf("k=%d: effects (-want +got):\n%s", k, diff)
		}
		if !c.fired {
			if k < 20 {
				t.Fatalf("only %d writes were counted", k-1)
			}
			return
		}
	}
}

// memoryTwin's world forgets repeats: an effect is made before its cursor is saved.
func memoryTwin() twin {
	var j *Memory
	var done []string
	plan := &engine.Plan{Name: "erp", Steps: []engine.StepPlan{{ID: "load"}, {ID: "switch"}, {ID: "verify"}}}
	return twin{
		plan:   func() *engine.Plan { return plan },
		fresh:  func(*testing.T) engine.Journal { j, done = NewMemory(), nil; return j },
		reopen: func(*testing.T) engine.Journal { return j },
		effect: func(ctx context.Context, cp engine.Checkpoint, step string, n int, _ func() error) error {
			if e := fmt.Sprintf("%s %d", step, n); !slices.Contains(done, e) {
				done = append(done, e)
			}
			return cp.Save(ctx, nil, n+1)
		},
		effects: func(*testing.T) []string { return done },
	}
}

// targetTwin's world is a table without a key: an effect made twice stands there twice.
func targetTwin(t *testing.T) twin {
	url := newDB(t)
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), "CREATE TABLE public.effect (n bigint GENERATED ALWAYS AS IDENTITY, what text)"); err != nil {
		t.Fatal(err)
	}
	plan := testPlan(t, url, "load", "switch", "verify")
	var r *Run
	reopen := func(t *testing.T) engine.Journal {
		if r != nil {
			r.Close(t.Context())
		}
		r = open(t, url, OpenOptions{Plan: plan})
		return r
	}
	return twin{
		costly: true,
		plan:   func() *engine.Plan { return plan },
		fresh: func(t *testing.T) engine.Journal {
			if r != nil {
				reopen(t)
				if err := r.Abort(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := conn.Exec(t.Context(), "DELETE FROM public.effect"); err != nil {
				t.Fatal(err)
			}
			return reopen(t)
		},
		reopen: reopen,
		effect: func(ctx context.Context, cp engine.Checkpoint, step string, n int, commit func() error) error {
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "INSERT INTO public.effect (what) VALUES ($1::text)", fmt.Sprintf("%s %d", step, n)); err != nil {
					return err
				}
				return cp.Save(ctx, tx, n+1)
			})
			return errors.Join(err, commit())
		},
		effects: func(t *testing.T) []string {
			rows, err := conn.Query(t.Context(), "SELECT what FROM public.effect ORDER BY n")
			if err != nil {
				t.Fatal(err)
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return got
		},
	}
}
