package steps

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// defaultsApart takes out the changes of tables that got other defaults and nothing else. A pass carries rows with all
// their columns, so none of them concerns a row.
func defaultsApart(changes []capture.Change) (others, defaults []capture.Change) {
	more := map[int32]bool{}
	for _, c := range changes {
		if c.What != capture.ColumnDefault || c.Rule != capture.Carry {
			more[c.ID] = true
		}
	}
	for _, c := range changes {
		if more[c.ID] {
			others = append(others, c)
		} else {
			defaults = append(defaults, c)
		}
	}
	return others, defaults
}

// tellDefaults names defaults that somebody changed on the target, from where nothing carries definitions, and records
// that they were seen: rows go back all the same. The other changes come back.
func tellDefaults(ctx context.Context, env *Env, conn *pgx.Conn, changes []capture.Change) ([]capture.Change, error) {
	others, defaults := defaultsApart(changes)
	for _, t := range env.Scope.Tables {
		seen := slices.DeleteFunc(slices.Clone(defaults), func(c capture.Change) bool { return c.ID != t.ID })
		if len(seen) == 0 {
			continue
		}
		for _, c := range seen {
			if env.Sink != nil {
				env.Sink.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(c.Table.Schema, c.Table.Name), Message: c.Text + " on the target; rows go back as they are, and the source keeps its own. If it is wanted there: " + c.SQL})
			}
		}
		if err := capture.Accept(ctx, conn, t, seen...); err != nil {
			return nil, err
		}
	}
	return others, nil
}
