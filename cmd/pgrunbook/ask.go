package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/user"
	"strings"
	"sync"

	"github.com/pgrunbook/pgrunbook/engine"
)

// askYes asks on the terminal for the literal word.
func (a *app) askYes(ctx context.Context, question string) error {
	answer, err := a.askLine(ctx, question)
	if err != nil {
		return err
	}
	if answer != "yes" {
		return engine.Errorf(engine.ClassApproval, "Nothing was changed.", "the answer was not yes")
	}
	return nil
}

// askApproval asks the person at the terminal for a step's approval.
func (a *app) askApproval(ctx context.Context, r engine.ApprovalRequest) (by string, err error) {
	if err := a.askYes(ctx, fmt.Sprintf("\nApproval %s: %s\nOnly the word yes approves: ", r.Name, r.Message)); err != nil {
		return "", err
	}
	return whoAmI(), nil
}

// whoAmI names the person at the keyboard as far as the system knows.
func whoAmI() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// askLine reads one line. A signal, or an answer that came another way, ends the wait.
func (a *app) askLine(ctx context.Context, question string) (string, error) {
	if a.view != nil {
		defer a.view.Suspend()() // a live block would be drawn over the question
	}
	prompt, done, err := a.prompt()
	if err != nil {
		return "", engine.Errorf(engine.ClassApproval, "Nothing was changed.", "no terminal to ask on: %w", err)
	}
	defer done()
	answer, giveUp := a.lines.next(a.stdin)
	if _, err := fmt.Fprint(prompt, question); err != nil {
		giveUp()
		return "", fmt.Errorf("asking: %w", err)
	}
	select {
	case <-ctx.Done():
		giveUp()
		_, _ = fmt.Fprintln(prompt) // what comes next is not part of the question
		return "", context.Cause(ctx)
	case r := <-answer:
		if r.text == "" && r.err != nil {
			return "", engine.Errorf(engine.ClassApproval, "Nothing was changed.", "no answer: %w", r.err)
		}
		return strings.TrimSpace(r.text), nil
	}
}

// lineReader reads the lines that answer questions. A read cannot be called off: the one of a
// question that was given up goes on, and the line that it gets answers no later question.
type lineReader struct {
	mu      sync.Mutex
	in      *bufio.Reader
	reading bool
	asked   chan line // of the question that is open; nil: none
}

type line struct {
	text string
	err  error
}

// next gives the next line, from now on; giveUp ends the wait for it.
func (l *lineReader) next(from io.Reader) (answer <-chan line, giveUp func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.in == nil {
		l.in = bufio.NewReader(from)
	}
	asked := make(chan line, 1)
	l.asked = asked
	if !l.reading {
		l.reading = true
		go l.read()
	}
	return asked, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.asked = nil
	}
}

// read goes on until a line has met a question.
func (l *lineReader) read() {
	for {
		text, err := l.in.ReadString('\n')
		l.mu.Lock()
		l.reading = l.asked == nil && err == nil
		if l.asked != nil {
			l.asked <- line{text, err}
			l.asked = nil
		}
		again := l.reading
		l.mu.Unlock()
		if !again {
			return
		}
	}
}
