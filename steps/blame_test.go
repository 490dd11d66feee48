package steps

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Whose disk is full, the message says, and the hint names that server; where it cannot be known, neither does.
func TestWhoseDiskIsFull(t *testing.T) {
	r := newRig(t, "")
	full := func(s *pg.Server, what string) error {
		conn, err := s.Connect(t.Context(), pg.Use{Name: "test"})
		r.must(err)
		defer func() { _ = conn.Close(t.Context()) }()
		_, err = conn.Exec(t.Context(), "DO $$ BEGIN RAISE EXCEPTION 'no room for "+what+"' USING ERRCODE = 'disk_full'; END $$")
		return fmt.Errorf("copying: %w", err)
	}
	for _, s := range []*pg.Server{r.env.Source, r.env.Target} {
		err, want := full(s, "the "+s.Side()), fmt.Sprintf("the %s at %s", s.Side(), s.Address())
		for range 2 { // by the step, and by the command
			err = r.env.placed(err)
		}
		if got := err.Error(); !strings.HasPrefix(got, "on "+want+": copying: ") || strings.Count(got, want) != 1 || engine.HintOf(err) != "Make room on "+want+", and run the same command again: it goes on." {
			t.Errorf("%v, hint %q", err, engine.HintOf(err))
		}
	}
	_ = full(r.env.Source, "both")
	if err := r.env.placed(full(r.env.Target, "both")); strings.Contains(err.Error(), " at ") || !strings.Contains(engine.HintOf(err), "that server") {
		t.Errorf("where both said the same: %v, hint %q", err, engine.HintOf(err))
	}
}
