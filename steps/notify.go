package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// notifyTries is how often a message is sent before the run goes on without it.
const notifyTries = 3

// notifyStep tells people something. A message that cannot be sent is a warning: it must not stop
// a migration, unless the runbook says that it is required.
type notifyStep struct {
	person
	url      runbook.Secret
	shape    string
	message  string
	required bool
	timeout  time.Duration // of one try
}

// webhookBody is what shape webhook sends.
type webhookBody struct {
	Runbook string        `json:"runbook"`
	Run     string        `json:"run,omitempty"`
	Step    engine.StepID `json:"step"`
	Phase   engine.Phase  `json:"phase"`
	Message string        `json:"message"`
	At      time.Time     `json:"at"`
}

// slackBody is what Slack's incoming webhooks take
// (https://api.slack.com/messaging/webhooks), and many chats besides.
type slackBody struct {
	Text string `json:"text"`
}

func decodeNotify(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &notifyStep{
		url:      address(body, "url"),
		shape:    body.Enum("shape", "webhook", "webhook", "slack"),
		message:  body.String("message"),
		required: body.Bool("required", false),
		timeout:  body.Duration("timeout", requestTimeout),
	}
	body.Require("url", "message")
	s.person = newPerson(env, place, b, s.url, s.shape, s.message, s.required, s.timeout)
	return s, body.Done()
}

// Plan shows where the message goes. The address often is a secret by itself; then it is hidden.
func (s *notifyStep) Plan(context.Context) (engine.StepPlan, error) {
	p := s.plan(fmt.Sprintf("notify (%s): %s", s.shape, s.message), "",
		engine.Action{On: engine.Runner, SQL: "POST " + s.url.String()})
	if s.required {
		p.Why = "the run stops if it cannot be sent"
	}
	return p, nil
}

// Apply sends the message.
func (s *notifyStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	body, err := s.body()
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		if err = s.post(ctx, body); err == nil {
			return nil
		}
		if try == notifyTries || ctx.Err() != nil {
			break
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	failed := s.fail(ctx, "notifying", s.url.String(), "Check the address, and run the same command again.", err)
	if s.required {
		return failed
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: failed.Error() + "; the run goes on"})
	return nil
}

func (s *notifyStep) body() ([]byte, error) {
	message := s.redact.String(s.message)
	if s.shape == "slack" {
		return json.Marshal(slackBody{Text: message})
	}
	b := webhookBody{Run: s.env.Run.ID, Step: s.ID(), Phase: s.place.Phase, Message: message, At: time.Now().UTC()}
	if s.env.Runbook != nil {
		b.Runbook = s.env.Runbook.Name
	}
	return json.Marshal(b)
}

func (s *notifyStep) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url.Reveal(), bytes.NewReader(body))
	if err != nil {
		return errors.New("the request cannot be made")
	}
	req.Header.Set("Content-Type", "application/json")
	code, err := send(nil, req)
	if err != nil {
		return err
	}
	if code < 200 || code > 299 {
		return fmt.Errorf("it answered %d", code)
	}
	return nil
}
