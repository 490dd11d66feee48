package freeze

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// Writers wait no longer than the budget, or than both holds and the walk last, whatever is at work and
// does not hear of it: here it does nothing else than wait until an application has written at the source.
func TestWritersAreLetGoWhateverIsAtWork(t *testing.T) {
	ends := map[string]func(p *pair, stop context.CancelFunc){
		"the budget is used up": func(p *pair, _ context.CancelFunc) {},
		"the target's hold is lost": func(p *pair, _ context.CancelFunc) {
			p.exec(p.target, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			                   WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
		},
		"the walk is stopped": func(_ *pair, stop context.CancelFunc) { stop() },
	}
	busy := map[string]func(p *pair, wait func()){
		"a line of output": func(p *pair, wait func()) {
			p.freeze.Mark = func(name, _ string, _ time.Duration) {
				if name == "proof" {
					wait()
				}
			}
		},
		"the final pass": func(p *pair, wait func()) { p.passed = func(context.Context) error { wait(); return nil } },
		"a switch step": func(p *pair, wait func()) {
			p.freeze.Switch = []SwitchStep{{
				Name: "dns", Timeout: time.Minute, Do: func(context.Context) error { wait(); return nil },
				Undo: func(context.Context) error { return nil },
			}}
		},
		"the decision": func(p *pair, wait func()) {
			p.freeze.Decide = func(context.Context, *Certificate) error { wait(); return nil }
		},
		"the last look": func(p *pair, wait func()) {
			looks := 0
			p.freeze.Check = func(context.Context) error {
				if looks++; looks == 2 {
					wait()
				}
				return nil
			}
		},
	}
	for end, happens := range ends {
		for work, hangs := range busy {
			if end != "the budget is used up" && work != "the last look" { // the last place before the COMMITs
				continue
			}
			t.Run(end+"/"+work, func(t *testing.T) {
				p := newPair(t)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if p.freeze.Budget = time.Minute; end == "the budget is used up" {
					p.freeze.Budget = 700 * time.Millisecond
				}
				waited := false
				hangs(p, func() {
					if waited { // in the second attempt
						return
					}
					waited = true
					happens(p, stop)
					if got := p.write(p.source); got != "" {
						t.Errorf("a write at the source ended with %q while it was held", got)
					}
				})
				_, err := p.freeze.Attempt(ctx, 1)
				if !errors.Is(err, ErrNotNow) || errors.Is(err, ErrUnknown) || !waited {
					t.Errorf("got %v", err)
				}
				if end == "the budget is used up" && !strings.Contains(err.Error(), "reached its budget of 700ms: drain ") {
					t.Errorf("where the time went is not said: %v", err)
				}
				p.wantSide("source")
				p.freeze.Budget = time.Minute
				if _, err := p.freeze.Attempt(t.Context(), 2); err != nil {
					t.Fatal(err)
				}
				p.wantSide("target")
			})
		}
	}
}

// Where the budget is found used up between two parts, the one that used it is named.
func TestOverBudgetNamesThePart(t *testing.T) {
	p := newPair(t)
	p.freeze.Budget = 500 * time.Millisecond
	p.freeze.Switch = []SwitchStep{
		{Name: "dns", Timeout: time.Minute, Do: func(context.Context) error { time.Sleep(time.Second); return nil }, Undo: func(context.Context) error { return nil }},
		{Name: "never", Timeout: time.Minute, Do: func(context.Context) error { t.Error("it began after the budget"); return nil }},
	}
	_, err := p.freeze.Attempt(t.Context(), 1)
	if !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "switch step dns 1") || strings.Count(err.Error(), "reached its budget") != 1 {
		t.Errorf("got %v", err)
	}
}

// A COMMIT that was not sent, or that the server answered with ROLLBACK, closed nothing: that is known.
func TestCommitThatDidNotHappen(t *testing.T) {
	p := newPair(t)
	for name, before := range map[string]func(h *Hold){
		"let go": func(h *Hold) { h.Release(t.Context()) },
		"failed": func(h *Hold) { _ = h.Exec(t.Context(), "SELECT 1/0") },
	} {
		hold, err := take(t.Context(), p.connect(p.source), "source", p.freeze.Run, flagClosed)
		if err != nil {
			t.Fatal(err)
		}
		before(hold)
		if err := hold.Commit(t.Context()); !refused(err) {
			t.Errorf("%s: got %v", name, err)
		}
		p.wantSide("source")
	}
	// In an attempt: the next one may just work.
	var exec ExecFunc
	p.freeze.AtClose = func(_ context.Context, e ExecFunc) error { exec = e; return nil }
	looks := 0
	p.freeze.Check = func(ctx context.Context) error {
		if looks++; looks == 2 {
			_ = exec(ctx, "SELECT 1/0")
		}
		return nil
	}
	if _, err := p.freeze.Attempt(t.Context(), 1); !errors.Is(err, ErrNotNow) || errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	p.wantSide("source")
	if _, err := p.freeze.Attempt(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	p.wantSide("target")
}

// A record that a side out of reach cannot take keeps no client from being sent back.
func TestSentBackBeforeTheRecord(t *testing.T) {
	for name, c := range map[string]struct {
		lost bool
		want []string
	}{
		"both sides are there": {false, []string{"record", "undo"}},
		"the target is lost":   {true, []string{"undo"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.freeze.Budget = time.Minute
			var did []string
			p.freeze.Undone = func(context.Context) { did = append(did, "record") }
			p.freeze.Switch = []SwitchStep{{
				Name: "dns", Timeout: time.Minute,
				Do: func(ctx context.Context) error {
					if !c.lost {
						return errors.New("no such zone")
					}
					p.exec(p.target, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					                   WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
					<-ctx.Done()
					return ctx.Err()
				},
				Undo: func(context.Context) error { did = append(did, "undo"); return nil },
			}}
			if _, err := p.freeze.Attempt(t.Context(), 1); !errors.Is(err, ErrNotNow) {
				t.Errorf("got %v", err)
			}
			if !slices.Equal(did, c.want) {
				t.Errorf("did %v, want %v", did, c.want)
			}
		})
	}
}
