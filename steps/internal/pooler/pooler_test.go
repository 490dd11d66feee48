package pooler

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestSwitchUnderLoad: clients at full speed see latency, no error, and end up on the other side.
func TestSwitchUnderLoad(t *testing.T) {
	tests := map[string]struct {
		mode string
		args []string
	}{
		"transaction":                           {mode: "transaction"},
		"session, a connection per transaction": {mode: "session", args: []string{"-C"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, testpg.BouncerOptions{PoolMode: tt.mode, PoolSize: 5})
			b := f.pgbench(4, tt.args...)
			if err := f.p.Pause(f.ctx, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			paused := f.hits(f.source)
			if s := f.state(); !s.Paused || s.Points != f.place(f.source) || s.PoolMode != tt.mode {
				t.Errorf("state %+v", s)
			}
			c, err := f.p.Repoint(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if c.From != f.place(f.source) || c.To != f.place(f.target) {
				t.Errorf("changed from %v to %v", c.From, c.To)
			}
			if n := f.hits(f.source); n != paused {
				t.Errorf("%d writes while paused", n-paused)
			}
			if err := errors.Join(f.p.Resume(f.ctx), f.p.Resume(f.ctx)); err != nil {
				t.Fatal(err)
			}
			f.wantAt(f.target)
			all := b.wait(t)
			source, target := f.hits(f.source), f.hits(f.target)
			if source != paused || target == 0 || source+target != all {
				t.Errorf("%d at the source (%d when paused), %d at the target, %d acknowledged", source, paused, target, all)
			}
		})
	}
}

func TestR14PauseGivesUp(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{PoolSize: 5})
	long := f.connect(f.bouncer.URL("erp", "postgres") + "&application_name=nightly")
	if _, err := long.Exec(f.ctx, "BEGIN; INSERT INTO hits DEFAULT VALUES"); err != nil {
		t.Fatal(err)
	}
	b := f.pgbench(5)
	err := f.p.Pause(f.ctx, 300*time.Millisecond)
	if engine.ClassOf(err) != engine.ClassNoCutover || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nightly") || strings.Count(err.Error(), "client ") != 1 {
		t.Errorf("error %v, want the one client in the way", err)
	}
	f.wantAt(f.source)
	// A PAUSE that meets a server connection in its login makes PgBouncer count that as failed and
	// turn a client away, so the pool must be warm again first.
	warm := func() {
		at := f.hits(f.source)
		f.eventually("the others go on", func() bool { return f.hits(f.source) > at+300 })
	}
	warm()
	// So does a cancelled one, and the transaction in the way was not hurt.
	cancelled, cancel := context.WithCancel(f.ctx)
	time.AfterFunc(200*time.Millisecond, cancel)
	if err := f.p.Pause(cancelled, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	f.wantAt(f.source)
	warm()
	if _, err := long.Exec(f.ctx, "COMMIT"); err != nil {
		t.Errorf("the long transaction: %v", err)
	}
	if err := f.p.Pause(f.ctx, 5*time.Second); err != nil {
		t.Errorf("with nobody in the way: %v", err)
	}
	if err := f.p.Resume(f.ctx); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
}

func TestPauseInSessionModeSaysWhy(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{PoolMode: "session"})
	conn := f.connect(f.bouncer.URL("erp", "postgres"))
	f.query(conn)
	err := f.p.Pause(f.ctx, 200*time.Millisecond)
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(engine.HintOf(err), "pool_mode = transaction") {
		t.Errorf("%v, hint %q", err, engine.HintOf(err))
	}
	f.wantAt(f.source)
	f.query(conn)
}

// TestDyingRunner is a process of its own that pauses, repoints and is killed.
func TestDyingRunner(t *testing.T) {
	var cfg Config
	text := os.Getenv("POOLER_DYING")
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Repoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}

func TestKilledRunnerLeavesPauseAndAnotherFrees(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{})
	before := f.file()
	c, err := f.p.Plan() // what the journal holds
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := json.Marshal(f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn := f.connect(f.bouncer.URL("erp", "postgres"))
	cmd := exec.Command(os.Args[0], "-test.run=^TestDyingRunner$")
	cmd.Env = append(os.Environ(), "POOLER_DYING="+string(cfg))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the runner was not killed: %v\n%s", err, out)
	}
	if s := f.state(); !s.Paused || s.Points != f.place(f.target) {
		t.Fatalf("state %+v: nothing was left behind", s)
	}
	got := make(chan string, 1)
	failed := make(chan error, 1)
	go func() {
		var name string
		err := conn.QueryRow(f.ctx, "SELECT current_database()::text || ' ' || current_setting('port')").Scan(&name)
		failed <- err
		got <- name
	}()
	stored, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var fromJournal Change
	if err := json.Unmarshal(stored, &fromJournal); err != nil {
		t.Fatal(err)
	}
	other := Group{f.pooler(f.cfg)}
	if err := errors.Join(other.Undo(f.ctx, []Change{fromJournal}), other.Resume(f.ctx)); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatalf("the waiting client: %v", err)
	}
	if diff := cmp.Diff(f.nameAt(f.source), <-got); diff != "" {
		t.Errorf("it got to %s", diff)
	}
	if diff := cmp.Diff(before, f.file()); diff != "" {
		t.Errorf("the file: %s", diff)
	}
	f.wantAt(f.source)
}

// TestPoolerThatRestarts: the kept console connection is replaced; Resume is no error when the
// pause died with the process.
func TestPoolerThatRestarts(t *testing.T) {
	f := newFixture(t, testpg.BouncerOptions{})
	if err := f.p.Pause(f.ctx, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := f.bouncer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.p.Resume(f.ctx); err == nil || !strings.Contains(engine.HintOf(err), `RESUME "erp";`) {
		t.Errorf("with nobody there: %v, hint %q", err, engine.HintOf(err))
	}
	if err := f.bouncer.Start(f.ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.p.Resume(f.ctx); err != nil {
		t.Error(err)
	}
	f.wantAt(f.source)
}
