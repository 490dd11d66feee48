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

// Unclear is the owner while a decided flip is not settled, and where a person must look.
const Unclear engine.Side = "unclear"

// Flip is one change of the write owner.
type Flip struct {
	N           int64           `json:"n"`
	Epoch       int64           `json:"epoch"` // of the runner that decided it
	From        engine.Side     `json:"from"`
	To          engine.Side     `json:"to"`
	Decided     time.Time       `json:"decided"`
	Settled     time.Time       `json:"settled,omitzero"` // zero: decided, outcome not recorded
	Outcome     string          `json:"outcome,omitempty"`
	Certificate json.RawMessage `json:"certificate,omitempty"`
}

// Outcomes of a settled flip.
const (
	FlipDone   = "done"
	FlipUndone = "undone" // the hold was lost before its COMMIT
)

// Ownership says who may write.
type Ownership struct {
	Side  engine.Side   `json:"side"` // source, target or Unclear
	Since time.Time     `json:"since"`
	Age   time.Duration `json:"-"`              // since then, by the target's clock alone
	Flip  *Flip         `json:"flip,omitempty"` // the latest, settled or not
}

// DecideFlip records durably that the flip is decided, just before the hold's COMMIT. Deciding
// the same flip again is harmless; with another one open it is an error of ClassAmbiguous. epoch
// is the run's. certificate is what is known of the freeze by then; it stays when this process dies
// and another one ends the flip.
func (r *Run) DecideFlip(ctx context.Context, epoch int64, from, to engine.Side, certificate any) error {
	text, err := json.Marshal(certificate)
	if err != nil {
		return fmt.Errorf("writing the freeze certificate as JSON: %w", err)
	}
	err = r.write(ctx, func(tx pgx.Tx) error {
		if err := Fence(ctx, tx, r.ID, epoch); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `INSERT INTO pgrunbook.flip (run, epoch, from_side, to_side, certificate) VALUES ($1::text, $2::bigint, $3::text, $4::text, nullif($5::jsonb, 'null'))
			ON CONFLICT (run) WHERE settled IS NULL DO NOTHING`, r.ID, epoch, string(from), string(to), string(text))
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		open, err := latestFlip(ctx, tx, r.ID)
		if err != nil {
			return err
		}
		if open != nil && open.Epoch == epoch && open.From == from && open.To == to {
			return nil
		}
		return engine.Errorf(engine.ClassAmbiguous, "Look at both gates first: pgrunbook status", "an earlier flip is decided and not settled")
	})
	if err != nil {
		return fmt.Errorf("recording the decision to flip from %s to %s: %w", from, to, err)
	}
	return nil
}

const latestFlipSQL = `
SELECT n, epoch, from_side, to_side, decided, settled, COALESCE(outcome, ''), certificate::text
  FROM pgrunbook.flip WHERE run = $1::text ORDER BY n DESC LIMIT 1`

func latestFlip(ctx context.Context, q querier, run string) (*Flip, error) {
	return scanFlip(q.QueryRow(ctx, latestFlipSQL, run))
}

func scanFlip(row pgx.Row) (*Flip, error) {
	var f Flip
	var settled *time.Time
	var certificate *string
	err := row.Scan(&f.N, &f.Epoch, &f.From, &f.To, &f.Decided, &settled, &f.Outcome, &certificate)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // no flip yet is not an error
	}
	if err != nil {
		return nil, err
	}
	if settled != nil {
		f.Settled = *settled
	}
	if certificate != nil {
		f.Certificate = json.RawMessage(*certificate)
	}
	return &f, nil
}

// Owner says who may write as far as the journal knows. A flip that is decided and not settled
// makes it Unclear: only a look at both gates tells. It waits for a SetOwner in flight. Both
// questions go to the server together, as one transaction: perhaps neither side takes writes now.
func (r *Run) Owner(ctx context.Context) (Ownership, error) {
	var o Ownership
	sql := "SELECT side, since, EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) since)::float8 FROM pgrunbook.owner WHERE run = $1::text"
	if !r.use.ReadOnly {
		sql += " FOR UPDATE"
	}
	batch := &pgx.Batch{}
	batch.Queue(sql, r.ID).QueryRow(func(row pgx.Row) error {
		var age float64
		err := row.Scan(&o.Side, &o.Since, &age)
		o.Age = time.Duration(age * float64(time.Second))
		return err
	})
	batch.Queue(latestFlipSQL, r.ID).QueryRow(func(row pgx.Row) (err error) {
		o.Flip, err = scanFlip(row)
		return err
	})
	err := r.do(ctx, func(conn *pgx.Conn) error { return conn.SendBatch(ctx, batch).Close() })
	if err != nil {
		return o, fmt.Errorf("reading who may write: %w", err)
	}
	if o.Flip != nil && o.Flip.Settled.IsZero() {
		o.Side, o.Since, o.Age = Unclear, o.Flip.Decided, 0
	}
	return o, nil
}

// SetOwner records who may write, and settles an open flip: done where side is its To, undone
// where it is its From; Unclear leaves it open. In the transaction whose COMMIT opens a gate on the
// target, record and gate change together; with nil it commits on its own. It fences.
func (r *Run) SetOwner(ctx context.Context, tx pgx.Tx, side engine.Side) error {
	var err error
	if tx != nil {
		err = r.setOwner(ctx, tx, side)
	} else {
		err = r.write(ctx, func(tx pgx.Tx) error { return r.setOwner(ctx, tx, side) })
	}
	if err != nil {
		return fmt.Errorf("recording that the %s may write: %w", side, err)
	}
	return nil
}

// EndFlip is SetOwner in a transaction of the caller's, for a flip that is still open there; one that
// somebody has settled meanwhile is ErrSettled.
func (r *Run) EndFlip(ctx context.Context, tx pgx.Tx, flip *Flip, side engine.Side) error {
	var one int
	err := Fence(ctx, tx, r.ID, r.Epoch)
	if err == nil { // locked in the order in which setOwner does
		err = tx.QueryRow(ctx, "SELECT 1 FROM pgrunbook.owner WHERE run = $1::text FOR UPDATE", r.ID).Scan(&one)
	}
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT 1 FROM pgrunbook.flip WHERE run = $1::text AND n = $2 AND settled IS NULL FOR UPDATE", r.ID, flip.N).Scan(&one)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrSettled
	}
	if err == nil {
		err = r.setOwner(ctx, tx, side)
	}
	if err != nil {
		return fmt.Errorf("recording that the %s may write: %w", side, err)
	}
	return nil
}

// ErrSettled is the end of a flip that another process has ended.
var ErrSettled = errors.New("the flip is settled already")

// Unflip records that a flip of this runner's which is still open did not come about: its COMMIT was never sent.
func (r *Run) Unflip(ctx context.Context) error {
	return r.write(ctx, func(tx pgx.Tx) error {
		flip, err := latestFlip(ctx, tx, r.ID)
		if err != nil || flip == nil || flip.Epoch != r.Epoch {
			return err
		}
		return r.EndFlip(ctx, tx, flip, flip.From)
	})
}

// ownerIdle is how long SetOwnerWhile may stand still before its COMMIT.
const ownerIdle = 2 * time.Second

// SetOwnerWhile is EndFlip for what holds only as long as a lock elsewhere does: still asks for that
// last, and whoever stands still after it finds the transaction ended. So that lock must outlive the
// question by more than ownerIdle.
func (r *Run) SetOwnerWhile(ctx context.Context, flip *Flip, side engine.Side, still func(ctx context.Context) error) error {
	err := r.write(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL idle_in_transaction_session_timeout = %d", ownerIdle.Milliseconds())); err != nil {
			return err
		}
		if err := r.EndFlip(ctx, tx, flip, side); err != nil {
			return err
		}
		return still(ctx)
	})
	if err != nil {
		return fmt.Errorf("recording that the %s may write: %w", side, err)
	}
	return nil
}

func (r *Run) setOwner(ctx context.Context, tx pgx.Tx, side engine.Side) error {
	if err := Fence(ctx, tx, r.ID, r.Epoch); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE pgrunbook.owner SET since = CASE WHEN side = $2::text THEN since ELSE pg_catalog.clock_timestamp() END, side = $2::text
		WHERE run = $1::text`, r.ID, string(side)); err != nil {
		return err
	}
	if side == Unclear {
		return nil
	}
	_, err := tx.Exec(ctx, `UPDATE pgrunbook.flip SET settled = pg_catalog.clock_timestamp(), outcome = CASE WHEN to_side = $2::text THEN 'done' ELSE 'undone' END
		WHERE run = $1::text AND settled IS NULL`, r.ID, string(side))
	return err
}

// SaveCertificate stores the freeze certificate, as JSON, with the latest flip.
func (r *Run) SaveCertificate(ctx context.Context, certificate any) error {
	b, err := json.Marshal(certificate)
	if err == nil {
		err = r.fenced(ctx, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `UPDATE pgrunbook.flip SET certificate = $2::jsonb
				WHERE run = $1::text AND n = (SELECT pg_catalog.max(f.n) FROM pgrunbook.flip f WHERE f.run = $1::text)`, r.ID, string(b))
			if err == nil && tag.RowsAffected() != 1 {
				err = errors.New("no flip was decided")
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("storing the freeze certificate: %w", err)
	}
	return nil
}

// SaveClosed adds to the certificate of the latest flip, if it took place, by which position of the closed
// side's log the COMMIT that closed it was in. The first one counts.
func (r *Run) SaveClosed(ctx context.Context, position string) error {
	err := r.fenced(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE pgrunbook.flip SET certificate = certificate || pg_catalog.jsonb_build_object('closed_at', $2::text)
			WHERE run = $1::text AND outcome = 'done' AND certificate ->> 'closed_at' IS NULL
			  AND n = (SELECT pg_catalog.max(f.n) FROM pgrunbook.flip f WHERE f.run = $1::text)`, r.ID, position)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the position of the flip: %w", err)
	}
	return nil
}

// LastDone numbers the latest flip that took place, 0 before one: attempts that were undone moved nothing.
func (r *Run) LastDone(ctx context.Context) (n int64, err error) {
	err = r.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT coalesce(pg_catalog.max(n), 0) FROM pgrunbook.flip WHERE run = $1::text AND outcome = 'done'", r.ID).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("reading the latest flip: %w", err)
	}
	return n, nil
}

// Flips counts the flips of the run that took place, there and back.
func (r *Run) Flips(ctx context.Context) (n int, err error) {
	err = r.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT count(*) FROM pgrunbook.flip WHERE run = $1::text AND outcome = 'done'", r.ID).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("counting the flips: %w", err)
	}
	return n, nil
}

// Certified gives the latest flip that took place, with its freeze certificate; nil is none.
func (r *Run) Certified(ctx context.Context) (flip *Flip, err error) {
	err = r.do(ctx, func(conn *pgx.Conn) error {
		flip, err = scanFlip(conn.QueryRow(ctx, `SELECT n, epoch, from_side, to_side, decided, settled, outcome, certificate::text FROM pgrunbook.flip
			WHERE run = $1::text AND outcome = 'done' AND certificate IS NOT NULL ORDER BY n DESC LIMIT 1`, r.ID))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the freeze certificate: %w", err)
	}
	return flip, nil
}
