package dump

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// session says as whom a program connects.
type session struct {
	server  *pg.Server // nil: the program reads a file only
	name    string
	options map[string]string // settings of its sessions
}

// connection is what the environment cannot tell libpq: our own keepalives. "dbname" with an equals
// sign is a connection string; the database itself comes from PGDATABASE.
const connection = "--dbname=fallback_application_name=pgrunbook keepalives=1 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=60000"

// run runs one program to its end and gives its standard output.
func (t Tools) run(ctx context.Context, s session, program string, args ...string) (string, error) {
	out, _, err := t.runWarned(ctx, s, program, args...)
	return out, err
}

// runWarned is run, and gives the program's warnings. ctx's end kills its whole process group; on
// Linux the death of this process does too.
func (t Tools) runWarned(ctx context.Context, s session, program string, args ...string) (string, []string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(t.Dir, program), args...)
	cmd.Cancel = func() error { killGroup(cmd); return nil }
	cmd.Env = []string{"LC_ALL=C"}
	if s.server != nil {
		options, err := s.server.ProgramOptions(ctx, s.options)
		if err != nil {
			return "", nil, err
		}
		env, err := s.server.LibpqEnv(ctx, s.name, options)
		if err != nil {
			return "", nil, err
		}
		cmd.Env = append(env, "LC_ALL=C")
	}
	var out bytes.Buffer
	errs := &tail{}
	cmd.Stdout, cmd.Stderr = &out, errs
	cmd.WaitDelay = 5 * time.Second
	if err := wait(cmd); err != nil {
		if cause := ctx.Err(); cause != nil {
			return "", nil, fmt.Errorf("running %s: %w", program, cause)
		}
		return "", nil, &ProgramError{Program: program, Output: errs.String(), Err: err}
	}
	return out.String(), warnings(errs.String()), nil
}

// wait runs cmd in a process group of its own. Its goroutine keeps its thread, because the kernel's
// death signal is tied to the thread that started the child (prctl(2), PR_SET_PDEATHSIG).
func wait(cmd *exec.Cmd) error {
	ownGroup(cmd)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	return <-done
}

// ProgramError is a client program that failed.
type ProgramError struct {
	Program string
	Output  string // its last lines
	Err     error
}

// Error gives the program and its last lines.
func (e *ProgramError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("running %s: %v", e.Program, e.Err)
	}
	return fmt.Sprintf("running %s: %v: %s", e.Program, e.Err, strings.TrimSpace(e.Output))
}

// Unwrap gives the exit status.
func (e *ProgramError) Unwrap() error { return e.Err }

// harmless are warnings that ask for nothing: circular foreign keys matter to data dumps that fire
// triggers, and schema public is always there.
var harmless = regexp.MustCompile(`circular foreign-key constraints|could not resolve dependency loop|^(pg_dump|pg_restore): (detail|hint):|schema "public" already exists`)

// warnings gives the lines of a successful program's output that a person should see.
func warnings(output string) []string {
	var out []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "warning:") && !harmless.MatchString(line) {
			out = append(out, line)
		}
	}
	return out
}

// tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailBytes {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
