package steps

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/pgrunbook/pgrunbook/runbook"
)

// httpRequest is what is sent and the status of a good answer.
type httpRequest struct {
	url     runbook.Secret
	method  string
	headers map[string]runbook.Secret
	body    runbook.Secret
	status  int
}

// headerName is a token of RFC 9110, 5.6.2.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// decodeRequest reads a request; what is not given is as in the other one.
func decodeRequest(body *runbook.Body, other httpRequest) httpRequest {
	r := httpRequest{
		url:     address(body, "url"),
		method:  body.Enum("method", other.method, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete),
		headers: body.SensitiveMap("headers"),
		body:    body.Sensitive("body"),
		status:  int(body.Int("status", int64(other.status), 100)),
	}
	if !body.Has("url") {
		r.url = other.url
	}
	if !body.Has("headers") {
		r.headers = other.headers
	}
	if !body.Has("body") {
		r.body = other.body
	}
	for _, name := range sortedKeys(r.headers) {
		if !body.Has("headers") {
			break // they were complained about where they stand
		}
		if !headerName.MatchString(name) {
			body.Errorf("headers", "Bad name of a header", "%q cannot be the name of a header. Write for example Authorization or \"Content-Type\".", name)
		}
		if strings.ContainsAny(r.headers[name].Reveal(), "\r\n\x00") {
			body.Errorf("headers", "Bad value of a header", "The value of %s holds a line break, which no header can. Take it off where the value comes from, or write trimspace(...).", name)
		}
	}
	return r
}

// sameRequest reports whether undo is certain to send what the step sends. What is unknown, as variables are in
// validate, may differ.
func sameRequest(step, undo *runbook.Body, r, back httpRequest) bool {
	for _, name := range []string{"url", "method", "body"} {
		if undo.Has(name) && (!undo.Known(name) || step.Has(name) && !step.Known(name)) {
			return false
		}
	}
	return r.url.Reveal() == back.url.Reveal() && r.method == back.method && r.body.Reveal() == back.body.Reveal()
}

// line is the request on one line, without what a secret is part of.
func (r httpRequest) line() string { return r.method + " " + r.url.String() }

// String is the request for reading: headers often are credentials, and are left out.
func (r httpRequest) String() string {
	if body := r.body.String(); body != "" {
		return r.line() + "\n" + body
	}
	return r.line()
}

// whole refuses a request that holds the text of a file that is gone.
func (r httpRequest) whole() error {
	texts := []string{r.url.Reveal(), r.body.Reveal()}
	for _, v := range r.headers {
		texts = append(texts, v.Reveal())
	}
	return notGone(texts...)
}

func (r httpRequest) build(ctx context.Context) (*http.Request, error) {
	var body io.Reader = http.NoBody
	if text := r.body.Reveal(); text != "" {
		body = strings.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url.Reveal(), body)
	if err != nil {
		return nil, errors.New("the request cannot be made") // the cause would repeat the address
	}
	for name, value := range r.headers {
		if strings.EqualFold(name, "Host") {
			req.Host = value.Reveal()
		}
		req.Header.Set(name, value.Reveal())
	}
	return req, nil
}

// send makes one request and gives the status; a nil way is the usual one. Redirects are not followed, so that the
// status is the address's own; errors do not repeat the address.
func send(way http.RoundTripper, req *http.Request) (int, error) {
	client := &http.Client{Transport: way, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
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
