package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// subscribedSQL finds tables that are captured by statement triggers and that a subscription writes:
// its worker fires row triggers only.
const subscribedSQL = `
SELECT DISTINCT c.id FROM pgrunbook.captured c JOIN pg_subscription_rel r ON r.srrelid = ANY (c.members)
 WHERE c.id = ANY ($1) AND c.mode LIKE 'statement %' ORDER BY 1`

// unseenSQL makes later checks find such a table changed, also when its subscription is gone: what it
// wrote left no key.
const unseenSQL = `
UPDATE pgrunbook.captured SET fingerprint = jsonb_set(fingerprint, '{function}', '0'), sums[13] = 0
 WHERE id = ANY ($1) AND sums[13] <> 0`

// subscribed names the tables whose triggers were chosen before a subscription came.
func subscribed(ctx context.Context, conn *pgx.Conn, ids []int32, byID map[int32]scope.Table, readOnly bool) ([]Change, error) {
	rows, err := conn.Query(ctx, subscribedSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("looking for subscriptions: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return nil, fmt.Errorf("looking for subscriptions: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	if !readOnly {
		if _, err := conn.Exec(ctx, unseenSQL, found); err != nil {
			return nil, fmt.Errorf("recording that a subscription wrote: %w", err)
		}
	}
	var changes []Change
	for _, id := range found {
		c := newChange(byID[id], Subscribed, Stop, "a subscription writes it, and its worker fires no statement triggers: rows may have changed unseen")
		c.Hint = "Take it out of the subscription (ALTER SUBSCRIPTION ... SET PUBLICATION, or DROP SUBSCRIPTION) and run the same command again: the table is then loaded again. To keep the subscription, abort the run and plan anew: row triggers are chosen then."
		changes = append(changes, c)
	}
	return changes, nil
}
