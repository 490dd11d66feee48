package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// httpStep asks an address until it answers with the expected status.
type httpStep struct {
	person
	url      runbook.Secret
	method   string
	status   int
	retries  int64
	interval time.Duration
	timeout  time.Duration // of one request
}

func decodeHTTP(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &httpStep{
		url:      address(body, "url"),
		method:   body.Enum("method", http.MethodGet, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete),
		status:   int(body.Int("status", http.StatusOK, 100)),
		retries:  body.Int("retries", 0, 0),
		interval: body.Duration("interval", time.Second),
		timeout:  body.Duration("timeout", requestTimeout),
	}
	body.Require("url")
	s.person = newPerson(env, place, b, s.url, s.method, s.status, s.retries, s.interval, s.timeout)
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

// Plan shows the request and what answer is waited for.
func (s *httpStep) Plan(context.Context) (engine.StepPlan, error) {
	p := s.plan(fmt.Sprintf("%s %s until it answers %d", s.method, s.url.String(), s.status), "",
		engine.Action{On: engine.Runner, SQL: s.method + " " + s.url.String()})
	if s.retries > 0 {
		p.Why = fmt.Sprintf("asked up to %d times, every %s", s.retries+1, s.interval)
	}
	return p, nil
}

// Apply asks until the answer is right or the tries are used up.
func (s *httpStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	for try := int64(0); ; try++ {
		err := s.ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && try < s.retries {
			cp.Emit(engine.Event{
				Kind: engine.EventRetry, Object: s.url.String(), Reason: s.redact.String(err.Error()),
				Message: s.redact.String(fmt.Sprintf("%s: %v, asking again in %s (%d of %d)", s.url.String(), err, s.interval, try+1, s.retries)),
			})
			err = pause(ctx, s.interval)
		}
		if err == nil {
			continue
		}
		return s.fail(ctx, "asking", s.url.String(), "Mend what answers there, or raise retries, and run the same command again.", err)
	}
}

func (s *httpStep) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, s.method, s.url.Reveal(), http.NoBody)
	if err != nil {
		return errors.New("the request cannot be made")
	}
	code, err := send(req)
	if err != nil {
		return err
	}
	if code != s.status {
		return fmt.Errorf("it answered %d, expected is %d", code, s.status)
	}
	return nil
}

// send makes one request and gives the status. Redirects are not followed, so that the status is
// the address's own; errors do not repeat the address.
func send(req *http.Request) (int, error) {
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return 0, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // only lets the connection be used again
	return resp.StatusCode, resp.Body.Close()
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
