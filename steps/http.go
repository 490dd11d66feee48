package steps

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// httpStep asks an address until it answers with the expected status.
type httpStep struct {
	person
	request  httpRequest
	undo     *httpRequest // nil: none
	retries  int64
	interval time.Duration
	timeout  time.Duration // of one try; in switch, where writes wait, of all together
}

func decodeHTTP(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &httpStep{
		request:  decodeRequest(body, httpRequest{method: http.MethodGet, status: http.StatusOK}),
		retries:  body.Int("retries", 0, 0),
		interval: body.Duration("interval", time.Second),
		timeout:  body.Duration("timeout", requestTimeout),
	}
	body.Require("url")
	inputs := []any{s.request.url, s.request.method, s.request.status, s.retries, s.interval, s.timeout}
	if body.Has("headers") || body.Has("body") { // a step without them is the one that it was before there were any
		inputs = append(inputs, s.request.headers, s.request.body)
	}
	if undo := body.Block("undo"); undo != nil {
		back := decodeRequest(undo, s.request)
		s.undo = &back
		if sameRequest(body, undo, s.request, back) {
			undo.Errorf("url", "Nothing to undo", "undo sends the request of the step itself. Give it another url, method or body, with what puts the old state back; what it does not give is the step's.")
		}
		inputs = append(inputs, "undo", back.url, back.method, back.status, back.headers, back.body)
	}
	s.person = newPerson(env, place, b, inputs...)
	return s, body.Done()
}

// requestTimeout is how long one request may take by default.
const requestTimeout = 10 * time.Second

// address reads an http or https URL.
func address(body *runbook.Body, name string) runbook.Secret {
	u := body.Sensitive(name)
	if !body.Known(name) {
		return u
	}
	if _, err := parseHTTP(u.Reveal()); err != nil {
		body.Errorf(name, "Bad address", `Write a whole address with a host, such as "https://example.com/healthz".`)
	}
	return u
}

func parseHTTP(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("it is no URL") // the cause would repeat it
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("it is no http or https URL")
	}
	return u, nil
}

func (s *httpStep) command() string {
	return "http " + s.name + ": " + s.redact.String(s.request.line())
}
func (s *httpStep) limit() time.Duration { return s.timeout }

// Plan shows the request and what answer is waited for.
func (s *httpStep) Plan(context.Context) (engine.StepPlan, error) {
	action := engine.Action{On: engine.Runner, SQL: s.request.String()}
	if s.undo != nil {
		action.Reverse = s.undo.String()
	}
	p := s.plan(fmt.Sprintf("%s until it answers %d", s.request.line(), s.request.status), "", action)
	if s.retries > 0 {
		p.Why = fmt.Sprintf("asked up to %d times, every %s", s.retries+1, s.interval)
	}
	if s.place.Slot == Switch {
		p.Why = strings.TrimPrefix(p.Why+", given up after "+s.timeout.String(), ", ")
		p.Hazards = []engine.Hazard{{Kind: engine.HazardExternal, Object: s.request.url.String(), Text: "changes something elsewhere; after a crash in the middle it is asked again"}}
	}
	return p, nil
}

// Apply asks until the answer is right or the tries are used up.
func (s *httpStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	return s.run(ctx, s.request, cp)
}

// Undo does the same with the request of undo, where there is one.
func (s *httpStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	if s.undo == nil {
		return nil
	}
	return s.run(ctx, *s.undo, cp)
}

func (s *httpStep) run(ctx context.Context, r httpRequest, cp engine.Checkpoint) error {
	if err := r.whole(); err != nil {
		return err
	}
	outer := ctx
	var way http.RoundTripper
	if s.place.Slot == Switch {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("it took longer than its timeout of %s", s.timeout))
		defer cancel()
		fence := newFence()
		defer fence.close()
		way = fence.transport
	}
	for try := int64(0); ; try++ {
		err := s.ask(ctx, way, r)
		if err == nil {
			return nil
		}
		if s.again(ctx, try, err) {
			cp.Emit(engine.Event{
				Kind: engine.EventRetry, Object: r.url.String(), Reason: s.redact.String(err.Error()),
				Message: s.redact.String(fmt.Sprintf("%s: %v, asking again in %s (%d of %d)", r.url.String(), err, s.interval, try+1, s.retries)),
			})
			if err = pause(ctx, s.interval); err == nil {
				continue
			}
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return s.fail(outer, "asking", r.url.String(), "Mend what answers there, or raise retries, and run the same command again.", err)
	}
}

// again reports whether another try may be made. One that would begin after the time is up is not waited for: the
// last answer says more.
func (s *httpStep) again(ctx context.Context, try int64, err error) bool {
	if ctx.Err() != nil || try >= s.retries || errors.Is(err, errStoodStill) {
		return false
	}
	end, bounded := ctx.Deadline()
	return !bounded || time.Until(end) > s.interval
}

func (s *httpStep) ask(ctx context.Context, way http.RoundTripper, r httpRequest) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := r.build(ctx)
	if err != nil {
		return err
	}
	code, err := send(way, req)
	if err != nil {
		return err
	}
	if code != r.status {
		return fmt.Errorf("it answered %d, expected is %d", code, r.status)
	}
	return nil
}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
