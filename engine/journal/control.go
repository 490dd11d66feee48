package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Approval gives the newest approval of this name that is bound to this plan, whatever the clocks of those who gave
// them say. A rollback uses up the ones from before it: the next cutover needs a new yes.
func (r *Run) Approval(ctx context.Context, name, planDigest string) (engine.Approval, bool, error) {
	a := engine.Approval{Name: name, PlanDigest: planDigest}
	var age float64
	err := r.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT given_by, at, EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) recorded)::float8 FROM pgrunbook.approval
			WHERE run = $1::text AND name = $2::text AND plan_digest = $3::text
			  AND recorded > COALESCE((SELECT pg_catalog.max(f.settled) FROM pgrunbook.flip f
			        WHERE f.run = $1::text AND f.to_side = 'source' AND f.outcome = 'done'), '-infinity')
			ORDER BY n DESC LIMIT 1`, r.ID, name, planDigest).Scan(&a.By, &a.At, &age)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return engine.Approval{}, false, nil
	}
	if err != nil {
		return engine.Approval{}, false, fmt.Errorf("looking for the approval %q: %w", name, err)
	}
	a.Age = time.Duration(age * float64(time.Second))
	return a, true, nil
}

// Approve records an approval; all are kept. It needs no runner's lock.
func (r *Run) Approve(ctx context.Context, a engine.Approval) error {
	err := r.write(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO pgrunbook.approval (run, name, given_by, at, plan_digest) VALUES ($1::text, $2::text, $3::text, $4::timestamptz, $5::text)",
			r.ID, a.Name, a.By, a.At, a.PlanDigest)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the approval %q: %w", a.Name, err)
	}
	return nil
}

// UseUp makes the approvals of this name count for nothing: what they spoke of is to be done anew. They are
// kept. It fences.
func (r *Run) UseUp(ctx context.Context, tx pgx.Tx, name string) error {
	err := Fence(ctx, tx, r.ID, r.Epoch)
	if err == nil {
		_, err = tx.Exec(ctx, "UPDATE pgrunbook.approval SET plan_digest = plan_digest || ' (used up)' WHERE run = $1::text AND name = $2::text AND plan_digest NOT LIKE '% (used up)'", r.ID, name)
	}
	if err != nil {
		return fmt.Errorf("using up the approval %q: %w", name, err)
	}
	return nil
}

// Approvals lists every approval of the run, oldest first.
func (r *Run) Approvals(ctx context.Context) ([]engine.Approval, error) {
	var out []engine.Approval
	err := r.do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "SELECT name, given_by, at, plan_digest FROM pgrunbook.approval WHERE run = $1::text ORDER BY n", r.ID)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a engine.Approval, err error) {
			err = row.Scan(&a.Name, &a.By, &a.At, &a.PlanDigest)
			return a, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the approvals: %w", err)
	}
	return out, nil
}

// Control is what people change in mid-run from anywhere; the runner looks at it while it works.
type Control struct {
	Paused   bool
	Workers  int               // 0 is the plan's number
	Settings map[string]string // set NAME=VALUE
	By       string            // who changed it last
	At       time.Time
}

// Control reads the switches.
func (r *Run) Control(ctx context.Context) (Control, error) {
	var c Control
	err := r.do(ctx, func(conn *pgx.Conn) error {
		var err error
		c, err = readControl(ctx, conn, r.ID, "")
		return err
	})
	if err != nil {
		return c, fmt.Errorf("reading the run's switches: %w", err)
	}
	return c, nil
}

func readControl(ctx context.Context, q querier, run, lock string) (Control, error) {
	var c Control
	var settings string
	err := q.QueryRow(ctx, "SELECT paused, workers, settings::text, changed_by, at FROM pgrunbook.control WHERE run = $1::text"+lock, run).
		Scan(&c.Paused, &c.Workers, &settings, &c.By, &c.At)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal([]byte(settings), &c.Settings)
}

// SetControl changes the switches: change gets what is there and alters it, under a lock. It
// needs no runner's lock.
func (r *Run) SetControl(ctx context.Context, by string, change func(c *Control)) (Control, error) {
	var c Control
	err := r.write(ctx, func(tx pgx.Tx) error {
		var err error
		if c, err = readControl(ctx, tx, r.ID, " FOR UPDATE"); err != nil {
			return err
		}
		change(&c)
		settings, err := json.Marshal(c.Settings)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `UPDATE pgrunbook.control SET paused = $2::bool, workers = $3::int, settings = $4::jsonb, changed_by = $5::text,
			at = pg_catalog.clock_timestamp() WHERE run = $1::text RETURNING changed_by, at`, r.ID, c.Paused, c.Workers, string(settings), by).Scan(&c.By, &c.At)
	})
	if err != nil {
		return c, fmt.Errorf("changing the run's switches: %w", err)
	}
	return c, nil
}

// Holder says who holds the run, or held it last; false means that nobody ever did.
func (r *Run) Holder(ctx context.Context) (Holder, bool, error) {
	var h Holder
	err := r.do(ctx, func(conn *pgx.Conn) error {
		var released *time.Time
		err := conn.QueryRow(ctx, "SELECT host, pid, os_user, application, backend, since, released FROM pgrunbook.holder WHERE run = $1::text", r.ID).
			Scan(&h.Host, &h.PID, &h.User, &h.Application, &h.Backend, &h.Since, &released)
		if err != nil {
			return err
		}
		if released != nil {
			h.Released = *released
		}
		backend, _, _, err := lockHolder(ctx, conn, targetKey)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		h.Alive = backend == h.Backend
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return Holder{}, false, nil
	}
	if err != nil {
		return Holder{}, false, fmt.Errorf("reading who holds the run: %w", err)
	}
	return h, true, nil
}
