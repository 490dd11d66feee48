package testpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// StopMode is how PostgreSQL is told to stop.
type StopMode string

// The modes of pg_ctl stop.
const (
	Fast      StopMode = "fast"      // sessions are ended, a checkpoint is written
	Immediate StopMode = "immediate" // no checkpoint: the next start recovers
)

// process is a postmaster that we started.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// launcher starts children from one thread that lives as long as this process:
// a parent-death signal is sent when the forking thread ends, not the process.
var launcher = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func launch(cmd *exec.Cmd) error {
	result := make(chan error)
	launcher() <- func() { result <- cmd.Start() }
	return <-result
}

// Start starts a stopped cluster and waits until it takes connections.
func (c *Cluster) Start(ctx context.Context) error {
	if c.Running() {
		return errors.New("the server runs already")
	}
	if err := c.writeConfig(); err != nil {
		return err
	}
	log, err := os.OpenFile(c.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(c.BinDir, "postgres"), "-D", c.DataDir) //nolint:noctx // outlives the call; Stop ends it
	cmd.Dir = c.root.path
	cmd.Stdout, cmd.Stderr = log, log
	clock, err := c.clockEnv()
	if err != nil {
		return err
	}
	cmd.Env = append(serverEnv(), clock...)
	cmd.SysProcAttr = c.account.attr(syscall.SIGQUIT)
	if err := launch(cmd); err != nil {
		return fmt.Errorf("starting postgres: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	c.proc = p
	return c.waitReady(ctx)
}

// serverEnv keeps the caller's PG* variables, locale and secrets from a server.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

func (c *Cluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.ConnString())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-c.proc.done:
			return fmt.Errorf("the server ended while starting:\n%s", tail(c.Log(), 20))
		case <-ctx.Done():
			return fmt.Errorf("waiting for the server to take connections: %w: %w\n%s", ctx.Err(), err, tail(c.Log(), 20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Running says whether the postmaster lives (a paused one does).
func (c *Cluster) Running() bool {
	if c.proc == nil {
		return false
	}
	select {
	case <-c.proc.done:
		return false
	default:
		return true
	}
}

// Stop stops the server and waits for it.
func (c *Cluster) Stop(ctx context.Context, mode StopMode) error {
	if !c.Running() {
		return errors.New("stopping the server: it does not run")
	}
	sig := syscall.SIGINT
	if mode == Immediate {
		sig = syscall.SIGQUIT
	}
	if err := c.proc.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("stopping the server: %w", err)
	}
	select {
	case <-c.proc.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping the server: %w", ctx.Err())
	}
}

// Restart stops (fast) and starts on the same port.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := c.Stop(ctx, Fast); err != nil {
		return err
	}
	return c.Start(ctx)
}

// KillPostmaster kills the postmaster and all its backends with SIGKILL, as a
// crash of the machine would end them; the next Start recovers.
func (c *Cluster) KillPostmaster() error {
	if !c.Running() {
		return errors.New("killing the server: it does not run")
	}
	if err := c.proc.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the server: %w", err)
	}
	<-c.proc.done
	return killAll(c.DataDir)
}

// Pause stops every process of the server with SIGSTOP: connections stay open
// and silent.
func (c *Cluster) Pause() error {
	if !c.Running() {
		return errors.New("pausing the server: it does not run")
	}
	if err := c.proc.cmd.Process.Signal(syscall.SIGSTOP); err != nil { // first, so that no new backend appears
		return fmt.Errorf("pausing the server: %w", err)
	}
	return signalAll(c.DataDir, syscall.SIGSTOP)
}

// Resume lets a paused server run on.
func (c *Cluster) Resume() error {
	if err := signalAll(c.DataDir, syscall.SIGCONT); err != nil {
		return fmt.Errorf("resuming the server: %w", err)
	}
	return nil
}

// Promote ends recovery of a standby and waits until it takes writes.
func (c *Cluster) Promote(ctx context.Context) error {
	ctl := exec.CommandContext(ctx, filepath.Join(c.BinDir, "pg_ctl"), "promote", "-w", "-D", c.DataDir)
	ctl.Env, ctl.Dir = serverEnv(), c.root.path
	ctl.SysProcAttr = c.account.attr(syscall.SIGKILL)
	if out, err := ctl.CombinedOutput(); err != nil {
		return fmt.Errorf("promoting the standby: %w: %s", err, out)
	}
	return nil
}
