package steps

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestKillMarked: what a switch step of one run and epoch has started is ended, wherever it went; what
// another step, run or epoch has started lives on.
func TestKillMarked(t *testing.T) {
	start := func(env ...string) (ended chan struct{}) {
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
	const point, run, epoch = "PGRUNBOOK_STEP=cutover.switch.exec.point", "PGRUNBOOK_RUN=r1", "PGRUNBOOK_EPOCH=7"
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
