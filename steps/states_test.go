package steps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// TestStates takes one run through states in which a command must not do, or must not wait for, what it
// does in others.
func TestStates(t *testing.T) {
	major, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	cluster := testpg.Shared(t, major)
	way, direct := testpg.ListenT(t, cluster), testpg.NewDB(t, cluster)
	stopped := filepath.Join(t.TempDir(), "stopped")
	r := newRigOn(t, way.URL(direct), testpg.NewDB(t, testpg.Shared(t, targetMajor)), shopSetup, fmt.Sprintf(`cutover {
  max_write_block = "20s"
  attempts        = 2
  retry_every     = "2s"
}
finish {
  before {
    step "exec" "stop" {
      command = ["touch", %q]
      timeout = "5s"
    }
  }
}`, stopped))
	ctx := t.Context()
	r.must(r.walk(ctx, newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))

	t.Run("another database is not the run's", func(t *testing.T) {
		other := *r.env
		var err error
		if other.Source, err = NewServer(engine.Source, testpg.NewDB(t, cluster), ""); err != nil {
			t.Fatal(err)
		}
		if err := pinPlaces(ctx, &other, OpenOptions{AnyPlace: true}); engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), "another database than the run's") {
			t.Errorf("it was opened with another source: %v", err)
		}
	})

	t.Run("a flip that was decided and not made does not end the next attempt", func(t *testing.T) {
		attempts := 0
		step := newFreeze(r.env, []freeze.SwitchStep{{
			Name: "dns", Timeout: 5 * time.Second,
			Do: func(context.Context) error {
				if attempts++; attempts == 1 { // the witness, after the decision, is not let in
					way.Refuse(true)
				}
				return nil
			},
			Undo: func(context.Context) error { way.Refuse(false); return nil },
		}})
		r.onEvent = func(e engine.Event) {
			if e.Kind == engine.EventRetry {
				r.exec(direct, "UPDATE shop.customer SET name = 'in between' WHERE id = 1")
			}
		}
		r.must(r.walk(ctx, step))
		r.onEvent = nil
		if attempts != 2 {
			t.Errorf("the flip came with attempt %d", attempts)
		}
		r.want(r.target, "SELECT string_agg(outcome, ' ' ORDER BY n) FROM pgrunbook.flip", "undone done")
		r.want(r.target, "SELECT name FROM shop.customer WHERE id = 1", "in between")
	})

	t.Run("a way back waits for no window", func(t *testing.T) {
		later := time.Now().UTC().Add(3 * time.Hour)
		r.env.Runbook.Cutover.Window = later.Format("15:04") + "-" + later.Add(time.Hour).Format("15:04")
		defer func() { r.env.Runbook.Cutover.Window = "" }()
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		r.must(r.walk(bounded, newRollback(r.env, nil)))
		r.exec(direct, "UPDATE shop.customer SET name = 'back' WHERE id = 1")
	})

	t.Run("finish refuses before it stops anything", func(t *testing.T) {
		if _, err := Finish(ctx, r.env, FinishOptions{Now: true}, WalkOptions{Show: r.env.Sink}, nil); err == nil || !strings.Contains(err.Error(), "writes are on the source") {
			t.Errorf("finish with writes on the source: %v", err)
		}
		if _, err := os.Stat(stopped); err == nil {
			t.Error("people's steps of finish ran before it refused")
		}
	})
}
