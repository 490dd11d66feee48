package cutover_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// outcome is how one process of the program ended.
type outcome struct {
	code   int
	signal syscall.Signal
	text   string // stdout and stderr
}

// process is the program at work.
type process struct {
	r     *rig
	cmd   *exec.Cmd
	what  string
	out   string // file: a pipe would make us wait for the guardian too
	trace string
	ended chan error
	done  *outcome
}

// start begins a command on the rig's runbook. points is what PGRUNBOOK_FAILPOINTS says.
func (r *rig) start(points string, args ...string) *process {
	r.t.Helper()
	p := r.prepare(points, args...)
	r.must(p.cmd.Start())
	go func() { p.ended <- p.cmd.Wait() }()
	return p
}

func (r *rig) prepare(points string, args ...string) *process {
	r.t.Helper()
	r.runs++
	p := &process{r: r, what: strings.Join(args, " ") + " " + points, ended: make(chan error, 1)}
	p.out, p.trace = filepath.Join(r.dir, fmt.Sprintf("out%d", r.runs)), filepath.Join(r.dir, fmt.Sprintf("trace%d", r.runs))
	p.cmd = exec.Command(program, append(args, "move.runbook.hcl")...)
	p.cmd.Dir = r.dir
	p.cmd.Env = append(r.env, "PGRUNBOOK_FAILPOINTS="+points, "PGRUNBOOK_FAILPOINT_TRACE="+p.trace)
	out, err := os.Create(p.out)
	r.must(err)
	r.t.Cleanup(func() { _ = out.Close() })
	p.cmd.Stdout, p.cmd.Stderr = out, out
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// said is what the process and its guardian have written up to now.
func (p *process) said() string {
	text, err := os.ReadFile(p.out)
	p.r.must(err)
	return string(text)
}

// end waits for the process; one that hangs fails the test.
func (p *process) end() outcome {
	p.r.t.Helper()
	if p.done != nil {
		return *p.done
	}
	var err error
	select {
	case err = <-p.ended:
	case <-time.After(6 * time.Minute):
		p.r.t.Errorf("pgrunbook %s hangs", p.what)
		p.signal(syscall.SIGQUIT) // its goroutines are in its output
		err = <-p.ended
	}
	o := outcome{text: p.said()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if o.code = status.ExitStatus(); status.Signaled() {
			o.signal = status.Signal()
		}
	} else {
		p.r.must(err)
	}
	fmt.Fprintf(&p.r.log, "--- pgrunbook %s: exit code %d\n%s", p.what, o.code, o.text)
	if strings.Contains(o.text, "panic:") {
		p.r.t.Errorf("pgrunbook %s panicked", p.what)
	}
	p.done = &o
	return o
}

// passed says how often the process, or its guardian, has passed a failpoint.
func (p *process) passed(name string) (n int) {
	text, err := os.ReadFile(p.trace)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if at, _, _ := strings.Cut(line, " "); at == name {
			n++
		}
	}
	return n
}
