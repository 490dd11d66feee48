package faults_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// outcome is how one process of the program ended.
type outcome struct {
	code   int
	signal syscall.Signal
	text   string
	took   time.Duration
}

func (o outcome) String() string {
	if o.signal != 0 {
		return fmt.Sprintf("ended by %s after %s", o.signal, o.took.Round(time.Millisecond))
	}
	return fmt.Sprintf("exit code %d after %s", o.code, o.took.Round(time.Millisecond))
}

// process is the program at work.
type process struct {
	r     *rig
	cmd   *exec.Cmd
	args  []string
	what  string
	began time.Time
	out   string // file: a pipe would make us wait for the guardian too
	trace string
	ended chan error
	limit time.Duration // after which it hangs
}

// start begins a command. points is what PGRUNBOOK_FAILPOINTS says; "" is none.
func (r *rig) start(points string, args ...string) *process {
	r.t.Helper()
	p := &process{r: r, args: args, what: strings.Join(args, " ") + cond(points == "", "", " ["+points+"]"), began: time.Now(), ended: make(chan error, 1), limit: 5 * time.Minute}
	r.runs++
	p.out, p.trace = filepath.Join(r.dir, fmt.Sprintf("out%d", r.runs)), filepath.Join(r.dir, fmt.Sprintf("trace%d", r.runs))
	p.cmd = exec.Command(program, append(args, "faults.runbook.hcl")...)
	p.cmd.Dir = r.dir
	p.cmd.Env = append(os.Environ(), "SOURCE_URL="+cond(r.via[0] == "", r.source, r.via[0]), "TARGET_URL="+cond(r.via[1] == "", r.target, r.via[1]), "PGRUNBOOK_PG_BIN_DIRS="+r.clients,
		"PGRUNBOOK_FAILPOINTS="+points, "PGRUNBOOK_FAILPOINT_TRACE="+p.trace, "PGRUNBOOK_MUTANT="+cond(r.without == "", os.Getenv("PGRUNBOOK_MUTANT"), r.without))
	out, err := os.Create(p.out)
	r.must(err)
	defer func() { _ = out.Close() }()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	r.must(p.cmd.Start())
	go func() { p.ended <- p.cmd.Wait() }()
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// end waits for the process; one that hangs fails the test.
func (p *process) end() outcome {
	p.r.t.Helper()
	var err error
	select {
	case err = <-p.ended:
	case <-time.After(p.limit):
		p.r.t.Errorf("pgrunbook %s hangs", p.what)
		p.signal(syscall.SIGQUIT) // its goroutines are in its output
		err = <-p.ended
	}
	text, readErr := os.ReadFile(p.out)
	p.r.must(readErr)
	o := outcome{text: string(text), took: time.Since(p.began)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if o.code = status.ExitStatus(); status.Signaled() {
			o.signal = status.Signal()
		}
	} else if err != nil {
		p.r.t.Fatal(err)
	}
	fmt.Fprintf(&p.r.log, "--- pgrunbook %s: %s\n%s", p.what, o, o.text)
	if strings.Contains(o.text, "panic:") {
		p.r.t.Errorf("pgrunbook %s panicked", p.what)
	}
	return o
}

// said is what it has said so far.
func (p *process) said() string {
	text, err := os.ReadFile(p.out)
	p.r.must(err)
	return string(text)
}

// passes are the failpoints that the process, or its guardian, passed.
func (p *process) passes() (names []string) {
	text, err := os.ReadFile(p.trace)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names
}

// hits are the failpoints that the process passed, in the order of their first hit, and how often.
func (p *process) hits() (names []string, count map[string]int) {
	count = map[string]int{}
	for _, name := range p.passes() {
		if count[name]++; count[name] == 1 {
			names = append(names, name)
		}
	}
	return names, count
}

// passed waits until the process, or its guardian, has passed a failpoint n times; false where both
// are gone.
func (p *process) passed(name string, n int) bool { return p.within(name, n, 3*time.Minute) }

// within is passed, for as long as a test says.
func (p *process) within(name string, n int, limit time.Duration) bool {
	const guardian = time.Minute // longer than it needs, also on a busy machine, to find that its runner is gone
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, count := p.hits(); count[name] >= n {
			return true
		}
		if late := time.Now().Add(guardian); p.state() == "Z" && late.Before(deadline) {
			deadline = late
		}
	}
	return false
}

// state is the process's state in /proc: T is stopped, Z has ended.
func (p *process) state() string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return "Z"
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

func (r *rig) run(points string, args ...string) outcome {
	r.t.Helper()
	return r.start(points, args...).end()
}

// killed runs a command that must die at a failpoint; false where it ended without passing it.
func (r *rig) killed(point string, args ...string) bool {
	r.t.Helper()
	_, died := r.dies(point, args...)
	return died
}

// dies is killed with the process, for what it passed.
func (r *rig) dies(point string, args ...string) (p *process, died bool) {
	r.t.Helper()
	p = r.start(point+":kill", args...)
	o := p.end()
	if o.signal == syscall.SIGKILL {
		return p, true
	}
	r.acceptable(o)
	return p, false
}

// acceptable: done, or to be repeated by a CI job.
func (r *rig) acceptable(o outcome) {
	r.t.Helper()
	if o.signal != 0 || !slices.Contains([]int{0, 1, 16}, o.code) && !(r.waits && o.code == 14) {
		r.t.Fatalf("%s is no answer to a dead runner:\n%s", o, o.text)
	}
}

// finally repeats a command until it is done. One death must not need more than a few attempts.
func (r *rig) finally(args ...string) {
	r.t.Helper()
	for range 4 {
		o := r.run("", args...)
		if o.code == 0 && o.signal == 0 {
			return
		}
		r.acceptable(o)
	}
	r.t.Fatalf("%s does not get done", args)
}
