package steps

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// unseen reports a table or sequence in scope that was made after the news were read, and before the definitions: it is
// on both sides and not part of the run, and nothing would tell of it again.
func (c *comparison) unseen(ctx context.Context, env *Env, source *pgx.Conn) error {
	known := map[string]bool{}
	for _, t := range env.Scope.Tables {
		known[tableID(t)] = true
	}
	for _, s := range env.Scope.Sequences {
		known[sequenceID(s)] = true
	}
	all := true
	for id, i := range c.source {
		all = all && (known[id] || i.Kind != dump.ItemTable && i.Kind != dump.ItemSequence)
	}
	if all {
		return nil
	}
	n, err := readNews(ctx, env, source)
	if err != nil {
		return err
	}
	for _, t := range n.tables {
		if id := tableID(t); c.source[id].Kind != "" {
			return &errRedefined{id + " was made"}
		}
	}
	for _, s := range n.sequences {
		if id := sequenceID(s); c.source[id].Kind != "" {
			return &errRedefined{id + " was made"}
		}
	}
	return nil
}

func tableID(t scope.Table) string {
	return dump.Item{Kind: dump.ItemTable, Name: pg.Name(t.Schema, t.Name.Name)}.ID()
}

func sequenceID(s scope.Sequence) string {
	return dump.Item{Kind: dump.ItemSequence, Name: pg.Name(s.Schema, s.Name.Name)}.ID()
}
