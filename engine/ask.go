package engine

import (
	"context"
	"errors"
	"time"
)

// AskFunc asks a person on the terminal. It returns who said yes, or an error of ClassApproval. It
// gives up the question when ctx ends.
type AskFunc func(ctx context.Context, r ApprovalRequest) (by string, err error)

// errAnswered ends a question that somebody answered from elsewhere.
var errAnswered = errors.New("approved from elsewhere")

// ask asks at the terminal, and looks meanwhile for an approval that is given from elsewhere. What
// the person at the terminal says first is what counts; a look that fails is no answer, and the
// record of one meets the same error.
func (w *Walk) ask(ctx context.Context, req ApprovalRequest) (Approval, error) {
	every := w.LookEvery
	if every == 0 {
		every = time.Second
	}
	asking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	elsewhere := make(chan Approval, 1)
	go func() {
		defer close(elsewhere)
		for {
			select {
			case <-asking.Done():
				return
			case <-time.After(every):
			}
			// Not with asking: an answer that comes meanwhile would break the journal's session.
			if got, found, err := w.Journal.Approval(ctx, req.Name, w.Digest); err == nil && found && inTime(req, got) {
				elsewhere <- got
				stop(errAnswered)
				return
			}
		}
	}()
	by, err := w.Ask(asking, req)
	stop(nil)
	got, found := <-elsewhere
	switch {
	case err != nil && found && errors.Is(err, errAnswered):
		return got, nil
	case err != nil:
		return Approval{}, err
	}
	mine := Approval{Name: req.Name, By: by, At: w.Now(), PlanDigest: w.Digest}
	return mine, w.Journal.Approve(ctx, mine)
}

// inTime reports whether an approval still counts.
func inTime(req ApprovalRequest, got Approval) bool {
	return req.Expires == 0 || got.Age <= req.Expires
}
