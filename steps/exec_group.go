package steps

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// tailLines of tailWide characters are what an error has of each stream of a command's output.
const (
	tailLines = 3
	tailWide  = 300
)

// tail keeps the last lines of each stream: they come on two ways, so their order among each other is not known.
type tail struct {
	mu       sync.Mutex
	out, err []string
}

func (t *tail) add(stream, line string) {
	if r := []rune(line); len(r) > tailWide {
		line = string(r[:tailWide]) + "..."
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	to := &t.out
	if stream == "stderr" {
		to = &t.err
	}
	*to = append(*to, line)
	*to = (*to)[max(0, len(*to)-tailLines):]
}

// said adds to an error what the command said last.
func (t *tail) said(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.err) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(t.err, "; "))
	}
	if len(t.out) > 0 {
		err = fmt.Errorf("%w (standard output: %s)", err, strings.Join(t.out, "; "))
	}
	return err
}

// groupsKey is for who wants to know of commands that a step runs.
type groupsKey struct{}

// withGroups lets told hear the process group of each command that runs, and 0 when it has ended.
func withGroups(ctx context.Context, told func(group int)) context.Context {
	return context.WithValue(ctx, groupsKey{}, told)
}

func toldOf(ctx context.Context) func(group int) {
	if told, ok := ctx.Value(groupsKey{}).(func(int)); ok {
		return told
	}
	return func(int) {}
}

// runGroup runs cmd as a process group of its own and hands every line of output on, and whether it was cut. When
// cmd's context ends, the whole group is asked to end and shortly after killed.
func runGroup(cmd *exec.Cmd, told func(group int), line func(stream, text string, cut bool)) error {
	cmd.SysProcAttr = groupAttr()
	cmd.Cancel = func() error { return killGroup(cmd, syscall.SIGTERM) }
	cmd.WaitDelay = execGrace
	out, outWriter := io.Pipe()
	errs, errWriter := io.Pipe()
	cmd.Stdout, cmd.Stderr = outWriter, errWriter
	var both sync.WaitGroup
	for stream, from := range map[string]io.Reader{"stdout": out, "stderr": errs} {
		both.Go(func() { lines(from, func(text string, cut bool) { line(stream, text, cut) }) })
	}
	err := startAndWait(cmd, told)
	_ = outWriter.Close() // a pipe's Close never fails
	_ = errWriter.Close()
	both.Wait()
	return err
}

// startAndWait keeps to one thread, because the signal that ends the command with us (where the
// system has it) is tied to the thread that started it. Whatever the command left in its group
// ends with it.
func startAndWait(cmd *exec.Cmd, told func(group int)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	told(cmd.Process.Pid)
	defer told(0)
	err := cmd.Wait()
	_ = killGroup(cmd, syscall.SIGKILL) // usually nobody is left
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // it ended well; only a child of it still held the output
	}
	return err
}

func killGroup(cmd *exec.Cmd, sig syscall.Signal) error {
	err := syscall.Kill(-cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// lines hands on each line, cut at 4 KiB, and reads to the end whatever comes.
func lines(r io.Reader, each func(text string, cut bool)) {
	br := bufio.NewReaderSize(r, 4096)
	for {
		b, more, err := br.ReadLine()
		if text := strings.TrimRight(string(b), "\r"); text != "" {
			each(text, more)
		}
		for more && err == nil {
			_, more, err = br.ReadLine()
		}
		if err != nil {
			return
		}
	}
}
