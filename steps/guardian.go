package steps

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// The guardian is a child process that outlives a runner killed in a freeze. It hears signs of
// life through a pipe. When the pipe ends without a good-bye, or falls silent, it looks at both gates:
// a flip whose first COMMIT happened gets its second one; before that, switch steps are undone and poolers
// resumed. Everything that it does the same command would do as well; it only does it at once, since its sessions are there before
// the flip. A runner that is only slow comes to no harm by it: the gates' keys say whose turn it is.
const (
	signEvery   = 50 * time.Millisecond
	silentLook  = 350 * time.Millisecond  // after so long it looks whether from is closed
	lookEvery   = 50 * time.Millisecond   // again, until
	silentAfter = 1100 * time.Millisecond // longer than a hold lives without its heartbeat: all that a dead runner left is ended, or is ended here
	signLate    = 10 * time.Millisecond   // what may be in the pipe when this process itself was held up
	readyWait   = 2 * time.Second
	goodbyeWait = 2 * time.Second
)

// What the runner says beside signs of life, a line each; the guardian answers "ready N".
const (
	sayBye     = "bye"
	sayPrepare = "prepare " // and the attempt's number
	sayCommand = "command " // and the process group of a switch step that runs, 0 when it has ended
	sayReady   = "ready "
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
	Switch         []switchBrief     // of the cutover, also on the way back
	Files          map[string]string // as the accepted plan has them
	Runbook        string            // its name
	Runner         string            // as journal.Self names it
	Holds          [2]string         // as its holds on from and on to are named
	Secrets        []string          // to be masked
}

// guardian is the runner's end of the pipes. Nil is none.
type guardian struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	says  chan string
	stop  chan struct{}
	done  sync.WaitGroup
	asked string // the answer that is waited for
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
		Switch: briefed(f.env), Files: f.env.filesOfPlan(), Runbook: f.env.Runbook.Name, Runner: journal.Self(), Holds: f.HoldNames(), Secrets: f.env.Runbook.Secrets(),
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
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	g := &guardian{cmd: cmd, in: in, says: make(chan string, 1), stop: make(chan struct{})}
	go g.listen(out)
	if _, err := in.Write(append(text, '\n')); err != nil {
		g.dismiss(true)
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	g.done.Add(1)
	go g.signs()
	return g, nil
}

// signs says that the runner lives.
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

// listen keeps the last answer; it ends with the child, or with us.
func (g *guardian) listen(out io.Reader) {
	defer close(g.says)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		select {
		case <-g.says: // of an earlier attempt, for which nobody waits any more
		default:
		}
		g.says <- lines.Text()
	}
}

// prepare tells the child to open its sessions while the runner opens its own.
func (g *guardian) prepare(attempt int) {
	if g == nil {
		return
	}
	g.asked = fmt.Sprint(sayReady, attempt)
	_, _ = fmt.Fprintf(g.in, "%s%d\n", sayPrepare, attempt)
}

// command tells the child of a switch step's command: it must not act any more once that is undone.
func (g *guardian) command(group int) {
	if g != nil {
		_, _ = fmt.Fprintf(g.in, "%s%d\n", sayCommand, group)
	}
}

// ready waits until the child has its sessions. One that gets none in time is no reason not to flip:
// it opens them when it needs them.
func (g *guardian) ready(ctx context.Context) bool {
	if g == nil {
		return true
	}
	timeout := time.After(readyWait)
	for {
		select {
		case said, ok := <-g.says:
			if !ok || said == g.asked {
				return ok
			}
		case <-timeout:
			return false
		case <-ctx.Done():
			return false
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
		_, _ = g.in.Write([]byte(sayBye + "\n"))
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
