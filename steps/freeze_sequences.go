package steps

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/sequences"
)

// sequences sets the new side's sequences ahead of the old side's, inside the freeze.
func (f *flipper) sequences(ctx context.Context) (int, error) {
	margin := f.env.Runbook.Cutover.SequenceMargin
	_, err := sequences.Carry(ctx, f.looks.of(f.from), f.looks.of(f.to), f.env.Scope.Sequences, margin, true)
	return len(f.env.Scope.Sequences), err
}

// lateSequences reads the old side's sequences once more when its sessions are gone: numbers that
// were handed out during the freeze are covered by the margin, and what is past it is an alarm.
func (f *flipper) lateSequences(ctx context.Context) error {
	old, err := sequences.Read(ctx, f.looks.of(f.from), f.env.Scope.Sequences)
	if err != nil {
		return err
	}
	now, err := sequences.Read(ctx, f.looks.of(f.to), f.env.Scope.Sequences)
	if err != nil {
		return err
	}
	behind := sequences.Behind(old, now)
	if len(behind) == 0 {
		return nil
	}
	names := make([]string, len(behind))
	for i, c := range behind {
		names[i] = pg.Name(c.Schema, c.Name)
	}
	return fmt.Errorf("numbers were taken on the %s past the margin of %d, or past half of what was left: on the %s set ahead: %s", f.from, f.env.Runbook.Cutover.SequenceMargin, f.to, strings.Join(names, ", "))
}
