package sequences

import (
	"context"
	"fmt"
	"math/big"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Change is where a sequence goes on.
type Change struct {
	scope.Name
	Next      int64 // the next value that it will hand out
	Exhausted bool  // it stands at its end, as on from: the next call fails
	Short     bool  // the whole margin did not fit before the sequence's end
}

// SQL sets the sequence. Exhausting takes the last value, in the same transaction.
func (c Change) SQL() string {
	name := pg.Name(c.Schema, c.Name.Name)
	sql := fmt.Sprintf("ALTER SEQUENCE %s RESTART WITH %d", name, c.Next)
	if c.Exhausted {
		sql += "; SELECT pg_catalog.nextval(" + pg.Literal(name) + "::pg_catalog.regclass)"
	}
	return sql
}

// Plan computes where each sequence goes on, from the states of both sides in the same order and
// the values of Columns (which may be nil). It leaves out those that stand there already.
//
// A sequence goes on margin calls later, in its own direction and stride, because sessions may hold
// values that they were given and have not used. So does one that was never called: no gate stops
// nextval, which may come between this look and the old side's end. Where fewer than twice that are
// left before its end, it skips half of what is left. It never goes behind the value that to
// stands at, nor behind the value found in its column; a cycling sequence may, since it comes round.
func Plan(from, to []State, columns map[int]int64, margin int64) ([]Change, error) {
	if len(from) != len(to) {
		return nil, fmt.Errorf("planning sequences: %d on one side and %d on the other", len(from), len(to))
	}
	var out []Change
	for i := range from {
		if from[i].Name != to[i].Name {
			return nil, fmt.Errorf("planning sequences: %v and %v are not the same", from[i].Name, to[i].Name)
		}
		var column *int64
		if v, ok := columns[i]; ok {
			column = &v
		}
		c, changed := plan(from[i], to[i], column, margin)
		if changed {
			out = append(out, c)
		}
	}
	return out, nil
}

// plan works in big integers: a bigint sequence near its limit plus a margin has no place in 64 bits.
func plan(from, to State, column *int64, margin int64) (Change, bool) {
	n := newNumbers(from)
	c := Change{Name: from.Name}
	next, skip := n.next(from), big.NewInt(margin)
	left := new(big.Int).Add(n.callsLeft(next), big.NewInt(1)) // with next itself
	if half := left.Rsh(left, 1); skip.Cmp(half) > 0 {
		skip, c.Short = half, margin > 0
	}
	next = n.after(next, skip)
	if !from.Cycle {
		if column != nil {
			next = n.beyond(next, big.NewInt(*column))
		}
		next = n.further(next, newNumbers(to).next(to))
	}
	if n.outside(next) {
		if from.Cycle {
			next = n.first
		} else {
			next, c.Exhausted = n.last, true
		}
	}
	c.Next = next.Int64()
	same := !to.Called && to.Last == c.Next && !c.Exhausted || c.Exhausted && to.Called && n.outside(newNumbers(to).next(to))
	return c, !same
}

// numbers are a sequence's bounds in its own direction.
type numbers struct {
	step, first, last *big.Int
	up                bool
}

func newNumbers(s State) numbers {
	n := numbers{step: big.NewInt(s.Increment), first: big.NewInt(s.Min), last: big.NewInt(s.Max), up: s.Increment > 0}
	if !n.up {
		n.first, n.last = n.last, n.first
	}
	return n
}

// next is the value that a side would hand out.
func (n numbers) next(s State) *big.Int {
	v := big.NewInt(s.Last)
	if s.Called {
		v.Add(v, n.step)
	}
	return v
}

// callsLeft is how many calls there are after v before the end.
func (n numbers) callsLeft(v *big.Int) *big.Int {
	return new(big.Int).Quo(new(big.Int).Sub(n.last, v), n.step)
}

// after is v plus some calls.
func (n numbers) after(v, calls *big.Int) *big.Int {
	return new(big.Int).Add(v, new(big.Int).Mul(calls, n.step))
}

// ahead reports whether a comes after b in the sequence's direction.
func (n numbers) ahead(a, b *big.Int) bool {
	if n.up {
		return a.Cmp(b) > 0
	}
	return a.Cmp(b) < 0
}

func (n numbers) further(a, b *big.Int) *big.Int {
	if n.ahead(b, a) {
		return b
	}
	return a
}

// beyond moves v, in strides, past a value that is used.
func (n numbers) beyond(v, used *big.Int) *big.Int {
	if n.ahead(v, used) {
		return v
	}
	calls := new(big.Int).Quo(new(big.Int).Sub(used, v), n.step)
	return n.after(v, calls.Add(calls, big.NewInt(1)))
}

func (n numbers) outside(v *big.Int) bool { return n.ahead(v, n.last) }

// Apply sets the sequences in one message: all or none, also outside a transaction of the caller's.
// The role must own them.
func Apply(ctx context.Context, to *pgx.Conn, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	var b strings.Builder
	for _, c := range changes {
		if c.Schema == ownSchema {
			return fmt.Errorf("setting sequences: %s is ours and is never carried", c.Display())
		}
		b.WriteString(c.SQL())
		b.WriteString(";\n")
	}
	if _, err := to.PgConn().Exec(ctx, b.String()).ReadAll(); err != nil {
		return fmt.Errorf("setting sequences: %w", err)
	}
	return nil
}

// Carry reads both sides and sets to's sequences. With columns it also looks at the columns that
// own them, on to. It returns the changes made.
func Carry(ctx context.Context, from, to *pgx.Conn, seqs []scope.Sequence, margin int64, columns bool) ([]Change, error) {
	source, err := Read(ctx, from, seqs)
	if err != nil {
		return nil, err
	}
	target, err := Read(ctx, to, seqs)
	if err != nil {
		return nil, err
	}
	var used map[int]int64
	if columns {
		if used, err = Columns(ctx, to, seqs); err != nil {
			return nil, err
		}
	}
	changes, err := Plan(source, target, used, margin)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("sequences.planned")
	return changes, Apply(ctx, to, changes)
}

// Raise sets a side's sequences margin calls ahead of where they stand there: for a side that goes on
// without the one that has handed out numbers since.
func Raise(ctx context.Context, conn *pgx.Conn, seqs []scope.Sequence, margin int64) error {
	now, err := Read(ctx, conn, seqs)
	if err != nil {
		return err
	}
	used, err := Columns(ctx, conn, seqs)
	if err != nil {
		return err
	}
	changes, err := Plan(now, now, used, margin)
	if err != nil {
		return err
	}
	return Apply(ctx, conn, changes)
}
