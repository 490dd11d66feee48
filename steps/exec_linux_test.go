package steps

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const point = "PGRUNBOOK_STEP=cutover.switch.exec.point"

// marked starts a process with an environment, in a session of its own.
func marked(t *testing.T, env ...string) (ended chan struct{}) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return ended
}

// TestKillMarked: what a switch step of one run and epoch has started is ended, wherever it went; what
// another step, run or epoch has started lives on.
func TestKillMarked(t *testing.T) {
	const run, epoch = "PGRUNBOOK_RUN=r1", "PGRUNBOOK_EPOCH=7"
	start := func(env ...string) chan struct{} { return marked(t, env...) }
	others := map[string]chan struct{}{
		"another step":  start("PGRUNBOOK_STEP=copy.before.exec.tunnel", run, epoch),
		"another run":   start(point, "PGRUNBOOK_RUN=r12", epoch),
		"another epoch": start(point, run, "PGRUNBOOK_EPOCH=78"),
		"no epoch":      start(point, run),
	}
	own := start(point, run, epoch)
	killMarked("r1", 0, 7)
	select {
	case <-own:
	case <-time.After(time.Minute):
		t.Error("the switch step's process lives on")
	}
	for what, ended := range others {
		select {
		case <-ended:
			t.Errorf("the process of %s was ended", what)
		default:
		}
	}
}

// TestUndoSparesEarlierSwitches: what is undone is ended before, and what the switch of an earlier cutover has left
// running lives on.
func TestUndoSparesEarlierSwitches(t *testing.T) {
	earlier := marked(t, point, "PGRUNBOOK_RUN=r2", "PGRUNBOOK_EPOCH=6")
	begun := marked(t, point, "PGRUNBOOK_RUN=r2", "PGRUNBOOK_EPOCH=7")
	memory, step := journal.NewMemory(), &freezeStep{id: "freeze"}
	if _, err := memory.Begin(t.Context(), step); err != nil {
		t.Fatal(err)
	}
	f := &flipper{
		env: &Env{Run: scope.Run{ID: "r2", Epoch: 9}}, cp: memory.Checkpoint("freeze", engine.SinkFunc(func(engine.Event) {})),
		cursor: &freezeCursor{Begun: 1, Epoch: 7},
	}
	if err := f.undoSwitch(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-time.After(time.Minute):
		t.Error("the process of the step that was undone lives on")
	}
	select {
	case <-earlier:
		t.Error("the process of an earlier cutover was ended")
	default:
	}
	if f.cursor.Begun != 0 || f.cursor.Epoch != 0 {
		t.Errorf("on record is still %+v", f.cursor)
	}
}
