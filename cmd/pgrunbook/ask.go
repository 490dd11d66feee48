package main

import (
	"bufio"
	"context"
	"fmt"
	"os/user"
	"strings"

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

// askLine reads one line. A signal ends the wait; the reader then stays behind, and ends with the
// process.
func (a *app) askLine(ctx context.Context, question string) (string, error) {
	if a.view != nil {
		defer a.view.Suspend()() // a live block would be drawn over the question
	}
	prompt, done, err := a.prompt()
	if err != nil {
		return "", engine.Errorf(engine.ClassApproval, "Nothing was changed.", "no terminal to ask on: %w", err)
	}
	defer done()
	if _, err := fmt.Fprint(prompt, question); err != nil {
		return "", fmt.Errorf("asking: %w", err)
	}
	type result struct {
		line string
		err  error
	}
	got := make(chan result, 1)
	go func() {
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		got <- result{line, err}
	}()
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case r := <-got:
		if r.line == "" && r.err != nil {
			return "", engine.Errorf(engine.ClassApproval, "Nothing was changed.", "no answer: %w", r.err)
		}
		return strings.TrimSpace(r.line), nil
	}
}
