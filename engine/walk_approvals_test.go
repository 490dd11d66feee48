package engine_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// What to type is the command of the walk that asks, and nothing from elsewhere where nobody hears it.
func TestApprovalHint(t *testing.T) {
	for _, c := range []struct {
		again  string
		here   bool
		want   string
		others bool
	}{
		{"", false, "pgrunbook apply --approve go --by WHO", true},
		{"pgrunbook rollback", false, "pgrunbook rollback --approve go --by WHO", true},
		{"pgrunbook rollback --without-target", true, "pgrunbook rollback --without-target --approve go --by WHO", false},
	} {
		w, _ := newWalk(t, journal.NewMemory(), &gated{step: step{id: "go"}})
		w.Again, w.OnlyHere = c.again, c.here
		_, err := w.Run(t.Context())
		if hint := engine.HintOf(err); !strings.Contains(hint, c.want) || strings.Contains(hint, "pgrunbook approve go") != c.others {
			t.Errorf("%q hints %q", c.again, hint)
		}
	}
}

func TestApprovals(t *testing.T) {
	given := func(digest func(w *engine.Walk) string, at time.Time) func(t *testing.T, w *engine.Walk) {
		return func(t *testing.T, w *engine.Walk) {
			t.Helper()
			if err := w.Journal.Approve(t.Context(), engine.Approval{Name: "go", By: "anna", At: at, PlanDigest: digest(w)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	right := func(w *engine.Walk) string { return w.Digest }
	wrong := func(*engine.Walk) string { return "sha256:other" }
	ask := func(by string, err error) func(t *testing.T, w *engine.Walk) {
		return func(_ *testing.T, w *engine.Walk) {
			w.Ask = func(context.Context, engine.ApprovalRequest) (string, error) { return by, err }
		}
	}
	old := time.Now().Add(-61 * time.Minute)
	cases := map[string]struct {
		prepare func(t *testing.T, w *engine.Walk)
		expires time.Duration
		class   engine.Class // 0: the step is applied
		want    string       // in the error
	}{
		"no terminal":            {func(*testing.T, *engine.Walk) {}, 0, engine.ClassApproval, "Batch jobs stopped?"},
		"given":                  {given(right, time.Now().Add(-72*time.Hour)), 0, 0, ""},
		"given in time":          {given(right, time.Now().Add(-59*time.Minute)), time.Hour, 0, ""},
		"expired":                {given(right, old), time.Hour, engine.ClassApproval, "by anna at " + old.UTC().Format(time.RFC3339) + " has expired"},
		"of another plan":        {given(wrong, start), 0, engine.ClassApproval, "needs an approval"},
		"given on the terminal":  {ask("bert", nil), 0, 0, ""},
		"denied on the terminal": {ask("", engine.Errorf(engine.ClassApproval, "", "no")), 0, engine.ClassApproval, "no"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			applied := false
			g := &gated{step: step{id: "go", apply: func(context.Context, engine.Checkpoint) error { applied = true; return nil }}, expires: c.expires}
			w, _ := newWalk(t, journal.NewMemory(), g)
			c.prepare(t, w)
			_, err := w.Run(t.Context())
			if applied != (c.class == 0) || (err == nil) != (c.class == 0) || engine.ClassOf(err) != c.class {
				t.Fatalf("applied %t, %v", applied, err)
			}
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q does not say %q", err, c.want)
			}
			if c.want != "no" && err != nil && !strings.Contains(engine.HintOf(err), "pgrunbook approve go --by") {
				t.Errorf("hint %q", engine.HintOf(err))
			}
			if name == "given on the terminal" {
				a, ok, err := w.Journal.Approval(t.Context(), "go", w.Digest)
				if err != nil || !ok || a.By != "bert" {
					t.Errorf("the journal has %+v, %t, %v", a, ok, err)
				}
			}
		})
	}
}

// TestApprovalFromElsewhereEndsTheQuestion: while a person is asked at the terminal, another one may
// say yes from elsewhere; what the person at the terminal says first counts all the same.
func TestApprovalFromElsewhereEndsTheQuestion(t *testing.T) {
	for name, c := range map[string]struct {
		late   time.Duration // the approval's age
		answer string        // at the terminal, after some looks; "": none before the question ends
		want   string
	}{
		"elsewhere": {0, "", "approval go: go approved by anna"},
		"expired":   {2 * time.Hour, "bert", "approval go: go approved by bert"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			g := &gated{step: step{id: "go"}, expires: time.Hour}
			j := &lookedAt{Memory: journal.NewMemory(), looks: make(chan struct{}, 100)}
			w, _ := newWalk(t, j, g)
			w.LookEvery = time.Millisecond
			w.Ask = func(asking context.Context, _ engine.ApprovalRequest) (string, error) {
				if err := j.Approve(ctx, engine.Approval{Name: "go", By: "anna", At: time.Now().Add(-c.late), PlanDigest: w.Digest}); err != nil {
					return "", err
				}
				if c.answer == "" {
					<-asking.Done()
					return "", context.Cause(asking)
				}
				for range 3 { // the first was before the question, the second perhaps before the approval
					select {
					case <-j.looks:
					case <-ctx.Done():
					}
				}
				return c.answer, asking.Err()
			}
			told := ""
			w.Sink = engine.SinkFunc(func(e engine.Event) {
				if e.Kind == engine.EventApproval {
					told = string(e.Kind) + " " + string(e.Step) + ": " + e.Message
				}
			})
			if _, err := w.Run(ctx); err != nil || told != c.want {
				t.Errorf("told %q, want %q, %v", told, c.want, err)
			}
		})
	}
}

// lookedAt tells of each look for an approval.
type lookedAt struct {
	*journal.Memory
	looks chan struct{}
}

func (j *lookedAt) Approval(ctx context.Context, name, digest string) (engine.Approval, bool, error) {
	defer func() {
		select {
		case j.looks <- struct{}{}:
		default:
		}
	}()
	return j.Memory.Approval(ctx, name, digest)
}

// TestApprovalSaysPrediction: whoever is asked, at the terminal or by a job that ends, is told what
// the freeze would cost, and so is who reads the events later.
func TestApprovalSaysPrediction(t *testing.T) {
	g := &gated{step: step{id: "go"}}
	w, _ := newWalk(t, journal.NewMemory(), g)
	w.Predict = func(context.Context) string { return "predicted write block 0.2s" }
	_, err := w.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Batch jobs stopped? [predicted write block 0.2s]") {
		t.Errorf("without a terminal: %v", err)
	}
	asked, told, waiting := "", "", ""
	w.Ask = func(_ context.Context, r engine.ApprovalRequest) (string, error) {
		if asked = r.Message; waiting == "" {
			t.Error("nothing was told before the question: status elsewhere cannot know of it")
		}
		return "bert", nil
	}
	w.Sink = engine.SinkFunc(func(e engine.Event) {
		switch e.Kind {
		case engine.EventApproval:
			told = e.Message
		case engine.EventWaiting:
			waiting = e.Reason
		default:
		}
	})
	if _, err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if waiting != "approval go" {
		t.Errorf("waiting for %q", waiting)
	}
	if asked != "Batch jobs stopped? [predicted write block 0.2s]" || told != "go approved by bert; predicted write block 0.2s" {
		t.Errorf("asked %q, told %q", asked, told)
	}
}
