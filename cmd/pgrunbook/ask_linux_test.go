package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgrunbook/pgrunbook/engine"
)

// pseudoTerminal gives a person's end and the program's end of a terminal (pty(7)).
func pseudoTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return person, program
}

// see reads what is on the person's screen until it ends with a text.
func see(t *testing.T, person *os.File, text string) string {
	t.Helper()
	var screen bytes.Buffer
	for b := make([]byte, 1); !strings.HasSuffix(screen.String(), text); screen.Write(b) {
		if _, err := person.Read(b); err != nil {
			t.Fatalf("%v after %q, waiting for %q", err, screen.String(), text)
		}
	}
	return screen.String()
}

func say(t *testing.T, person *os.File, text string) {
	t.Helper()
	if _, err := person.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// On a terminal a plan has the terminal's width.
func TestPlanHasTheWidthOfTheTerminal(t *testing.T) {
	person, program := pseudoTerminal(t)
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	a := newApp(program, program, program, func(string) (string, bool) { return "", false })
	done := make(chan error, 1)
	go func() {
		done <- a.print(&engine.Plan{Name: "x", NotCarried: []string{strings.Repeat("forty columns of words, and some spaces. ", 4) + "End"}}, planForm{})
	}()
	for _, l := range strings.Split(see(t, person, "End"), "\r\n") {
		if len(l) > 80 && !strings.HasPrefix(l, "  digest ") { // one word
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// readsTold tells when a read begins.
type readsTold struct {
	*os.File
	begun chan struct{}
}

func (r *readsTold) Read(p []byte) (int, error) {
	r.begun <- struct{}{}
	return r.File.Read(p)
}

// A question that was answered from elsewhere is over. What the person types after that, still
// looking at it, answers no later question.
func TestLateAnswerAnswersNothingElse(t *testing.T) {
	person, program := pseudoTerminal(t)
	stdin := &readsTold{program, make(chan struct{}, 10)}
	a := newApp(stdin, &bytes.Buffer{}, program, func(string) (string, bool) { return "", false })
	type answer struct {
		line string
		err  error
	}
	ask := func(ctx context.Context, question string) <-chan answer {
		got := make(chan answer, 1)
		go func() {
			line, err := a.askLine(ctx, question)
			got <- answer{line, err}
		}()
		see(t, person, question)
		return got
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	first := ask(ctx, "one? ")
	say(t, person, "yes\n")
	if got := <-first; got.line != "yes" || got.err != nil {
		t.Fatalf("the first answer is %+v", got)
	}
	elsewhere := errors.New("approved from elsewhere")
	asking, stop := context.WithCancelCause(ctx)
	second := ask(asking, "two? ")
	stop(elsewhere)
	if got := <-second; !errors.Is(got.err, elsewhere) {
		t.Fatalf("a question that was answered from elsewhere ends with %+v", got)
	}
	see(t, person, "\n")
	say(t, person, "yes\nyes\n")
	for range 4 { // with the fourth read, which the third question waits for, both lines are dropped
		<-stdin.begun
	}
	third := ask(ctx, "three? ")
	say(t, person, "no\n")
	if got := <-third; got.line != "no" || got.err != nil {
		t.Fatalf("the third question was answered with %+v", got)
	}
}
