package steps

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// The guardian is a child process that outlives a runner killed in a freeze. It hears a sign of
// life through a pipe; when the pipe ends without a good-bye, or falls silent, it looks at both
// gates: a flip whose first COMMIT happened gets its second one, poolers are resumed. Everything
// that it does the same command would do as well; it only does it within a second.
const (
	signEvery   = 100 * time.Millisecond
	silentAfter = 1100 * time.Millisecond // longer than a hold lives without its heartbeat
	goodbyeWait = 2 * time.Second
)

// brief is what the guardian must know. It goes through its standard input, since it holds secrets.
type brief struct {
	Source, Target pg.Config
	Run            scope.Run
	Scope          *scope.Scope
	From           engine.Side
	Step           engine.StepID
	Cutover        runbook.Cutover
	Inherited      inherited
}

// guardian is the runner's end of the pipe.
type guardian struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	stop chan struct{}
	done sync.WaitGroup
}

// startGuardian starts the child. Without a command in env there is none: the same command, run
// again, is what ends a flip then.
func (f *flipper) startGuardian(step engine.StepID) (*guardian, error) {
	if len(f.env.Guardian) == 0 {
		return nil, nil //nolint:nilnil // no guardian is not an error
	}
	cutover := f.env.Runbook.Cutover
	cutover.Switch = nil
	text, err := json.Marshal(brief{
		Source: f.env.Source.Config(), Target: f.env.Target.Config(), Run: f.env.Run, Scope: f.env.Scope,
		From: f.from, Step: step, Cutover: cutover, Inherited: inherited{AtOpen: f.atOpen},
	})
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	cmd := exec.Command(f.env.Guardian[0], f.env.Guardian[1:]...) //nolint:noctx // it must outlive us
	cmd.SysProcAttr = ownSession()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	g := &guardian{cmd: cmd, in: in, stop: make(chan struct{})}
	if _, err := in.Write(append(text, '\n')); err != nil {
		g.dismiss(true)
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	g.done.Add(1)
	go g.signs()
	return g, nil
}

// signs says every tenth of a second that the runner lives.
func (g *guardian) signs() {
	defer g.done.Done()
	tick := time.NewTicker(signEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
			if _, err := g.in.Write([]byte(".\n")); err != nil {
				return // it has gone: the flip is then ended by the same command
			}
		}
	}
}

// dismiss says good-bye and waits until the child has gone; one that is just looking at a side that
// does not answer is left to itself. Where the runner could not settle who may write there is no
// good-bye: the child goes on looking.
func (g *guardian) dismiss(settled bool) {
	if g == nil {
		return
	}
	close(g.stop)
	g.done.Wait()
	if settled {
		_, _ = g.in.Write([]byte("bye\n"))
	}
	_ = g.in.Close()
	if !settled {
		return
	}
	gone := make(chan struct{})
	go func() { _ = g.cmd.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(goodbyeWait):
	}
}

// Guard is the child: it reads its brief and then signs of life from in, and returns when it was
// dismissed or has settled who may write.
func Guard(ctx context.Context, in io.Reader, log *slog.Logger) error {
	lines := make(chan []byte)
	go func() {
		defer close(lines)
		r := bufio.NewReader(in)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	first, ok := <-lines
	if !ok {
		return errors.New("the guardian was told nothing")
	}
	var b brief
	if err := json.Unmarshal(first, &b); err != nil {
		return errors.New("the guardian does not understand its brief") // no %w: the text holds secrets
	}
	for acted := false; ; {
		silence := time.After(silentAfter)
		if acted {
			silence = nil // once is enough, until it speaks again
		}
		select {
		case line, ok := <-lines:
			if ok && string(line) == "bye\n" {
				return nil
			}
			if !ok {
				return b.act(ctx, log, "the runner has died")
			}
			acted = false
		case <-silence:
			if err := b.act(ctx, log, "the runner has fallen silent"); err != nil {
				return err
			}
			acted = true
		}
	}
}

// act ends what the runner began.
func (b brief) act(ctx context.Context, log *slog.Logger, why string) error {
	log.Warn("guardian: " + why + ": looking at both gates")
	env, err := b.env(log)
	if err != nil {
		return err
	}
	var opened bool
	err = untilSettled(ctx, env, func(ctx context.Context) (err error) {
		opened, err = b.settle(ctx, env)
		return err
	})
	if err != nil {
		return &engine.Error{Op: "settling the flip", Err: err, Hint: "Run the same command again at once: pgrunbook apply"}
	}
	side := b.From
	if opened {
		side = b.From.Other()
	}
	log.Warn(fmt.Sprintf("guardian: the %s takes writes; run the same command again", side))
	return nil
}

func (b brief) env(log *slog.Logger) (env *Env, err error) {
	env = &Env{Runbook: &runbook.Runbook{Cutover: b.Cutover}, Scope: b.Scope, Run: b.Run, Log: log, Sink: engine.SinkFunc(func(engine.Event) {})}
	if env.Source, err = pg.New(b.Source); err != nil {
		return nil, err
	}
	if env.Target, err = pg.New(b.Target); err != nil {
		return nil, err
	}
	return env, nil
}

func (b brief) settle(ctx context.Context, env *Env) (opened bool, err error) {
	if env.Journal, err = journal.Attach(ctx, env.Target, "guardian"); err != nil {
		return false, err
	}
	defer env.Journal.Close(context.WithoutCancel(ctx))
	step := &freezeStep{env: env, id: b.Step, from: b.From, inherits: &b.Inherited}
	f, err := step.build(ctx, env.Journal.Checkpoint(b.Step, env.Sink))
	if err != nil {
		return false, err
	}
	defer f.close(ctx)
	if opened, err = f.settle(ctx); err != nil {
		return false, err
	}
	return opened, f.poolers.settle(ctx, opened)
}
