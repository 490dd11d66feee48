package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

func TestEveryClassHasACodeOfTheTable(t *testing.T) {
	for class := engine.ClassFailed; class <= engine.ClassNoCutover; class++ {
		code := codeOf(t.Context(), fmt.Errorf("doing x: %w", engine.Errorf(class, "", "cause")))
		known := false
		for _, e := range exitCodes {
			known = known || e.code == code
		}
		if code == 0 || !known {
			t.Errorf("class %d has exit code %d", class, code)
		}
		if !strings.Contains(exitHelp(), fmt.Sprintf("  %3d  ", code)) {
			t.Errorf("code %d is not in the help", code)
		}
	}
}

func TestSignalsDecideTheCode(t *testing.T) {
	for signal, want := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(signalError{signal})
		if got := codeOf(ctx, errors.New("query: canceled")); got != want {
			t.Errorf("%v gives %d, want %d", signal, got, want)
		}
		if got := codeOf(ctx, engine.Errorf(engine.ClassAmbiguous, "", "who owns it")); got != 15 {
			t.Errorf("unclear ownership gives %d", got)
		}
		if got := codeOf(ctx, nil); got != 0 {
			t.Errorf("a command that ended well gives %d", got)
		}
	}
}

// Each signal is answered, the second one before the process ends; so is the end of the patience.
func TestSignalsAreAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		signals  []os.Signal
		patience time.Duration
		said     []string
		code     int
	}{
		"twice":     {[]os.Signal{os.Interrupt, os.Interrupt}, time.Hour, []string{"interrupted: " + finishing, stopping + " (last)"}, 130},
		"mixed":     {[]os.Signal{syscall.SIGTERM, os.Interrupt}, time.Hour, []string{"terminated: " + finishing, stopping + " (last)"}, 143},
		"too long":  {[]os.Signal{os.Interrupt}, time.Millisecond, []string{"interrupted: " + finishing, "not done after 1ms: " + stopping + " (last)"}, 130},
		"in time":   {[]os.Signal{os.Interrupt}, time.Hour, []string{"interrupted: " + finishing}, -1},
		"no signal": {nil, time.Hour, nil, -1},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			signals, done, code := make(chan os.Signal, 2), make(chan struct{}), -1
			for _, s := range c.signals {
				signals <- s
			}
			var said []string
			w := signalWatch{
				cancel: cancel, patience: c.patience, first: finishing, second: stopping, exit: func(n int) { code = n },
				say: func(text string, last bool) {
					if last {
						text += " (last)"
					}
					said = append(said, text)
					if len(said) == len(c.signals) && c.code < 0 {
						close(done)
					}
				},
			}
			if c.signals == nil {
				close(done)
			}
			w.watch(signals, done)
			if code != c.code || !slices.Equal(said, c.said) {
				t.Errorf("exit %d after %q, want %d after %q", code, said, c.code, c.said)
			}
			if stopped := errors.As(context.Cause(ctx), new(signalError)); stopped != (c.signals != nil) {
				t.Errorf("stopped: %t", stopped)
			}
		})
	}
}

func TestNormalise(t *testing.T) {
	root := newRoot(newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}, os.LookupEnv))
	got := normalise(root, []string{"plan", "-out=x", "-detailed-exitcode", "-var", "-a=b", "-v", "--json", "-nonsense", "-", "--", "-out"})
	want := []string{"plan", "--out=x", "--detailed-exitcode", "--var", "-a=b", "-v", "--json", "-nonsense", "-", "--", "-out"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestPanicIsAnErrorWithoutSecrets(t *testing.T) {
	var out, errs bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &errs, func(name string) (string, bool) {
		if name == "PGRUNBOOK_TARGET_URL" {
			panic("hunter22 leaked")
		}
		return "", false
	})
	a.hide("hunter22")
	if code := execute(t.Context(), a, []string{"status"}); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if got := out.String() + errs.String(); strings.Contains(got, "hunter22") || !strings.Contains(got, "bug in pgrunbook") {
		t.Errorf("output: %s", got)
	}
}

func TestAnnotationEscapes(t *testing.T) {
	d := &hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: "a, b: 100%", Detail: "two\nlines: 5%", Subject: &hcl.Range{Filename: "x,y.hcl", Start: hcl.Pos{Line: 3, Column: 7}}}
	want := "::warning file=x%2Cy.hcl,line=3,col=7,title=a%2C b%3A 100%25::two%0Alines: 5%25"
	if got := annotation(d); got != want {
		t.Errorf("got %s", got)
	}
}

func TestStatusNamesABlockerOnce(t *testing.T) {
	st := steps.Status{Waiting: "waiting to gate a table: no lock on t, in the way: pid 7 (app)", Blockers: []string{"pid 7 (app)", "pid 8 (batch)"}}
	if got := statusView(st).Notes; len(got) != 2 || got[0] != st.Waiting || got[1] != "pid 8 (batch)" {
		t.Errorf("notes are %q", got)
	}
}

// Words that nobody reads keep a signal from nothing: neither from stopping the command, nor from ending it.
func TestSignalWhileNobodyReads(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	signals, code, never := make(chan os.Signal, 2), -1, make(chan struct{})
	defer close(never)
	signals <- syscall.SIGTERM
	signals <- syscall.SIGTERM
	w := signalWatch{cancel: cancel, patience: time.Hour, exit: func(n int) { code = n }, say: func(_ string, last bool) {
		if last {
			<-never
		}
		<-ctx.Done()
	}}
	w.watch(signals, make(chan struct{}))
	if code != 143 {
		t.Errorf("exit code %d", code)
	}
}
