package steps

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// guard is the child's end of the pipes.
type guard struct {
	brief
	env      *Env
	out      io.Writer
	lines    chan string
	opening  chan *flipper // sessions on their way; nil: none are
	flip     *flipper      // what ends the flip, its sessions open; nil: not yet, or they were lost
	redact   *Redactor
	epoch    int64 // of the run, as far as it knows
	group    int   // the processes of a switch step's command that runs; 0: none does
	over     bool  // no hold of the runner may be there any more
	warnings *slog.Logger
}

// Guard is the child: it reads its brief and then what the runner says from in, answers on out, and
// returns when it was dismissed or has settled who may write.
func Guard(ctx context.Context, in io.Reader, out io.Writer, log *slog.Logger) error {
	g := &guard{out: out, lines: make(chan string), warnings: log}
	go func() {
		defer close(g.lines)
		r := bufio.NewReader(in)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			g.lines <- strings.TrimSuffix(line, "\n")
		}
	}()
	first, ok := <-g.lines
	if !ok {
		return errors.New("the guardian was told nothing")
	}
	if err := json.Unmarshal([]byte(first), &g.brief); err != nil {
		return errors.New("the guardian does not understand its brief") // no %w: the text holds secrets
	}
	if err := g.equip(); err != nil {
		return err
	}
	defer g.drop(ctx)
	return g.stand(ctx)
}

func (g *guard) equip() (err error) {
	g.redact = NewRedactor(g.Secrets)
	g.env = &Env{Runbook: &runbook.Runbook{Name: g.brief.Runbook, Cutover: g.Cutover}, Plan: &engine.Plan{Runbook: engine.RunbookPin{Files: g.Files}}, Scope: g.Scope, Run: g.Run, Log: g.warnings, Sink: engine.SinkFunc(g.say)}
	if g.env.Source, err = pg.New(g.Source); err != nil {
		return err
	}
	g.env.Target, err = pg.New(g.Target)
	return err
}

// say passes on who keeps a side closed, and what is undone: nobody else hears of it.
func (g *guard) say(e engine.Event) {
	if e.Kind != engine.EventWaiting && e.Kind != engine.EventNote {
		return
	}
	if e.Hint != "" {
		e.Message += "; " + e.Hint
	}
	g.warnings.Warn("guardian: " + e.Message)
}

// stand listens until there is nothing left to guard.
func (g *guard) stand(ctx context.Context) error {
	heard, acted := time.Now(), false
	for {
		wait := max(silentLook-time.Since(heard), lookEvery)
		silence := time.After(wait)
		if acted {
			silence = nil // once is enough, until it speaks again
		}
		var line string
		alive, spoke := true, true
		select {
		case line, alive = <-g.lines:
		case <-silence:
			select {
			case line, alive = <-g.lines:
			case <-time.After(signLate):
				spoke = false
			}
		}
		switch {
		case !alive:
			g.endCommand()
			g.over = true
			return g.act(ctx, "the runner has died")
		case line == sayBye:
			return nil
		case spoke:
			heard, acted = time.Now(), false
			if n, ok := strings.CutPrefix(line, sayPrepare); ok {
				g.prepare(ctx, n)
			} else if n, ok := strings.CutPrefix(line, sayCommand); ok {
				g.group, _ = strconv.Atoi(n)
			}
		case time.Since(heard) >= silentAfter || g.fromClosed(ctx):
			acted, g.over = true, time.Since(heard) >= silentAfter
			if err := g.act(ctx, "the runner has fallen silent"); err != nil {
				return err
			}
		}
	}
}

// prepare opens the sessions for an attempt, or makes sure of those of an earlier one, beside the
// listening.
func (g *guard) prepare(ctx context.Context, attempt string) {
	had := g.sessions()
	opening := make(chan *flipper, 1)
	g.opening, g.flip = opening, nil
	go func() {
		ctx, cancel := context.WithTimeout(ctx, settleTry)
		defer cancel()
		if had == nil || g.warm(ctx, had) != nil {
			g.shut(ctx, had)
			had, _ = g.open(ctx) // what is wrong is found out again when it matters
		}
		if had != nil && g.warm(ctx, had) == nil {
			_, _ = fmt.Fprintf(g.out, "%s%s\n", sayReady, attempt)
		}
		opening <- had
	}()
}

// warm asks every session what it will be asked.
func (g *guard) warm(ctx context.Context, f *flipper) error {
	_, err := g.env.Journal.Owner(ctx)
	return errors.Join(err, f.Warm(ctx))
}

// sessions gives what is open, or on its way.
func (g *guard) sessions() *flipper {
	if g.opening != nil {
		g.flip, g.opening = <-g.opening, nil
	}
	return g.flip
}

// drop closes all sessions; the next look opens its own.
func (g *guard) drop(ctx context.Context) {
	g.shut(ctx, g.sessions())
	g.flip = nil
}

func (g *guard) shut(ctx context.Context, f *flipper) {
	if f != nil {
		f.close(ctx)
		g.env.Journal.Close(ctx)
	}
}

// open makes what ends the flip: a session on each side and one for the journal, in the present epoch,
// so that a later runner which dies as well does not leave the state as it is.
func (g *guard) open(ctx context.Context) (_ *flipper, err error) {
	var gates *freeze.Gates
	done := make(chan error, 1)
	go func() {
		opened, err := freeze.OpenGates(ctx, g.env.Server(g.From), g.env.Server(g.From.Other()))
		gates = opened
		done <- err
	}()
	f, err := g.build(ctx)
	if err = errors.Join(err, <-done); err != nil {
		gates.Close(ctx)
		g.shut(ctx, f)
		return nil, err
	}
	f.Gates = gates
	return f, nil
}

func (g *guard) build(ctx context.Context) (_ *flipper, err error) {
	if g.env.Journal, err = journal.Attach(ctx, g.env.Target, "guardian"); err != nil {
		return nil, err
	}
	step := &freezeStep{env: g.env, id: g.Step, from: g.From, inherits: &g.Inherited}
	f, err := step.build(ctx, g.env.Journal.Checkpoint(g.Step, g.env.Sink))
	if err != nil {
		g.env.Journal.Close(ctx)
	}
	return f, err
}

// fromClosed looks, with sessions that are there, whether the runner stands still between the COMMITs.
// While its hold is there the look does not wait for it.
func (g *guard) fromClosed(ctx context.Context) bool {
	f := g.sessions()
	if f == nil {
		return false
	}
	closed, err := f.FromClosed(ctx)
	if err != nil {
		g.drop(ctx)
	}
	return closed
}

// act ends what the runner began.
func (g *guard) act(ctx context.Context, why string) error {
	g.warnings.Warn("guardian: " + why + ": looking at both gates")
	var opened bool
	err := untilSettled(ctx, g.env, g.sessions() != nil, func(ctx context.Context) (err error) {
		if opened, err = g.settle(ctx); err != nil {
			g.drop(ctx)
		}
		return err
	})
	if err != nil {
		return &engine.Error{Op: "settling the flip", Err: err, Hint: "Run the same command again at once: pgrunbook apply"}
	}
	side := g.From
	if opened {
		side = g.From.Other()
	} else if err := g.sendBack(ctx); errors.Is(err, errTakenOver) {
		g.warnings.Warn("guardian: " + err.Error())
		return nil
	} else if err != nil { // on record for the next command
		g.warnings.Warn(fmt.Sprintf("guardian: clients may be left at the closed side: %v. %s", err, engine.HintOf(err)))
	}
	g.warnings.Warn(fmt.Sprintf("guardian: the %s takes writes; run the same command again", side))
	return nil
}

func (g *guard) settle(ctx context.Context) (opened bool, err error) {
	f := g.sessions()
	if f == nil {
		if f, err = g.open(ctx); err != nil {
			return false, err
		}
		g.flip = f
	}
	if err := g.endHolds(ctx, f); err != nil {
		return false, err
	}
	if opened, err = f.settle(ctx); err != nil {
		return false, err
	}
	if err := f.readCursor(ctx); err != nil {
		return opened, err
	}
	if opened {
		return true, errors.Join(f.poolers.settle(ctx, true), f.switched(ctx))
	}
	if f.cursor.Begun > 0 { // the poolers' clients go on when all else is back
		return false, nil
	}
	return false, g.letGo(ctx, f)
}

// endHolds ends what a runner that is dead or has been silent for long still holds: by now its servers should have done
// that, but a clock of theirs that went back keeps them from it. A runner that was only slow is told by its next statement.
func (g *guard) endHolds(ctx context.Context, f *flipper) error {
	if !g.over {
		return nil
	}
	ended, err := f.EndHolds(ctx, g.Holds)
	if len(ended) > 0 {
		g.warnings.Warn("guardian: ended the runner's hold, which its server had left there, on the " + strings.Join(ended, " and the "))
	}
	if err != nil && pg.SQLState(err) != "" { // the right may be missing: the keys decide all the same
		g.warnings.Warn("guardian: " + err.Error())
		return nil
	}
	return err
}

// letGo points the poolers back, and lets their clients go on.
func (g *guard) letGo(ctx context.Context, f *flipper) error {
	if !f.cursor.Paused {
		return nil
	}
	return f.WhileFromWrites(ctx, func(ctx context.Context, _ func(context.Context) error) error {
		if err := f.readCursor(ctx); err != nil { // a runner that lives on cannot hold writers now
			return err
		}
		return f.poolers.settle(ctx, false)
	})
}
