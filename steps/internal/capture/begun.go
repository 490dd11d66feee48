package capture

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Begin records that changes which Check found are about to be carried. Until Accept, Check also says what has changed since
// then: of a column that came and went again meanwhile the record from before knows nothing, and the other side may have it.
func Begin(ctx context.Context, conn *pgx.Conn, changes []Change) error {
	for i, c := range changes {
		if !c.Checked() || slices.ContainsFunc(changes[:i], func(o Change) bool { return o.ID == c.ID && o.Checked() }) {
			continue
		}
		rec, err := recorded(ctx, conn, scope.Table{ID: c.ID})
		if err != nil {
			return err
		}
		if rec == nil || slices.ContainsFunc(rec.print.Begun, func(f fingerprint) bool { return slices.Equal(f.sums(), c.seen.sums()) }) {
			continue
		}
		rec.print.Begun = append(rec.print.Begun, c.seen)
		var done pgconn.CommandTag
		raw, err := json.Marshal(rec.print)
		if err == nil { // without sums it differs, whatever is in the catalog: a partition that went again leaves no trace there
			done, err = conn.Exec(ctx, "UPDATE pgrunbook.captured SET fingerprint = $2::jsonb, sums = '{}' WHERE id = $1 AND fingerprint = $3::jsonb", c.ID, string(raw), string(rec.raw))
		}
		if err != nil {
			return fmt.Errorf("recording what is carried of %s: %w", pg.Name(c.Table.Schema, c.Table.Name), err)
		}
		if done.RowsAffected() == 0 { // another process recorded it
			return c.meanwhile()
		}
	}
	return pg.Durable(ctx, conn)
}

// takenBack says what happened to a table since it was recorded, and first what was taken back of what was about to be carried
// since. Whether rows changed unseen, the record tells: triggers that were made anew meanwhile are ours.
func takenBack(t scope.Table, was, now fingerprint) []Change {
	found := compare(t, was, now)
	var back []Change
	for _, begun := range was.Begun {
		for _, c := range compare(t, begun, now) {
			same := func(o Change) bool {
				return o.What == c.What && o.Rule == c.Rule && o.Column == c.Column && o.Member == c.Member
			}
			if c.What == Tampered || c.What == Rewritten || slices.ContainsFunc(found, same) || slices.ContainsFunc(back, same) {
				continue
			}
			back = append(back, c)
		}
	}
	return append(back, found...)
}
