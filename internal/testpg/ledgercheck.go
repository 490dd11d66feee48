package testpg

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Report is what a database has of a ledger. Lists name at most maxListed
// transactions as client/number; the counts are complete.
type Report struct {
	Stats
	LostCount, PhantomCount, DoubledCount int
	Lost                                  []string // acknowledged and not there
	Phantom                               []string // refused, rolled back or never ours, and there
	Doubled                               []string // there more than once
	UnknownPresent                        int      // of Unknown, how many are there; any number is right
	Sum, WantSum                          int64    // of all balances
	Unbalanced                            []string // accounts that disagree with their entries
}

const maxListed = 20

// OK says that nothing was lost, invented or torn.
func (r Report) OK() bool {
	return r.LostCount == 0 && r.PhantomCount == 0 && r.DoubledCount == 0 && r.Sum == r.WantSum && len(r.Unbalanced) == 0
}

// String is a short summary for people.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "acknowledged %d, lost %d, phantom %d, doubled %d, unknown %d (%d there), refused %d, longest gap %s",
		r.Acknowledged, r.LostCount, r.PhantomCount, r.DoubledCount, r.Unknown, r.UnknownPresent, r.Refused, r.LongestGap.Round(time.Millisecond))
	for _, list := range []struct {
		name  string
		items []string
	}{{"lost", r.Lost}, {"phantom", r.Phantom}, {"doubled", r.Doubled}, {"unbalanced", r.Unbalanced}} {
		if len(list.items) > 0 {
			fmt.Fprintf(&b, "\n  %s: %s", list.name, strings.Join(list.items, ", "))
		}
	}
	if r.Sum != r.WantSum {
		fmt.Fprintf(&b, "\n  balances add up to %d, want %d", r.Sum, r.WantSum)
	}
	return b.String()
}

// Check compares a database with the ledger, in one snapshot. Call it when Run
// has returned and the database has all it will get.
func (l *Ledger) Check(ctx context.Context, url string) (Report, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return Report{}, fmt.Errorf("checking the ledger: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	r := Report{Stats: l.Stats(), WantSum: int64(l.opts.Accounts) * startBalance}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := l.checkEntries(ctx, tx, &r); err != nil {
			return err
		}
		return l.checkBalances(ctx, tx, &r)
	})
	if err != nil {
		return Report{}, fmt.Errorf("checking the ledger: %w", err)
	}
	return r, nil
}

func (l *Ledger) checkEntries(ctx context.Context, tx pgx.Tx, r *Report) error {
	l.mu.Lock()
	clients := make([][]outcome, len(l.clients))
	number := map[string]int{}
	for i := range l.clients {
		clients[i] = slices.Clone(l.clients[i])
		number[l.clientName(i)] = i
	}
	l.mu.Unlock()
	seen := make([][]bool, len(clients))
	for i := range clients {
		seen[i] = make([]bool, len(clients[i]))
	}
	rows, err := tx.Query(ctx, "SELECT client, seq FROM "+l.table("entry"))
	if err != nil {
		return err
	}
	var name string
	var seq int
	if _, err := pgx.ForEachRow(rows, []any{&name, &seq}, func() error {
		i, ours := number[name]
		switch ours = ours && seq >= 0 && seq < len(clients[i]); {
		case !ours || clients[i][seq] == refused:
			r.PhantomCount++
			list(&r.Phantom, name, seq)
		case seen[i][seq]:
			r.DoubledCount++
			list(&r.Doubled, name, seq)
		case clients[i][seq] == unknown:
			r.UnknownPresent++
		}
		if ours {
			seen[i][seq] = true
		}
		return nil
	}); err != nil {
		return err
	}
	for i := range clients {
		for seq, o := range clients[i] {
			if o == acknowledged && !seen[i][seq] {
				r.LostCount++
				list(&r.Lost, l.clientName(i), seq)
			}
		}
	}
	return nil
}

func list(to *[]string, client string, seq int) {
	if len(*to) < maxListed {
		*to = append(*to, fmt.Sprintf("%s/%d", client, seq))
	}
}

func (l *Ledger) checkBalances(ctx context.Context, tx pgx.Tx, r *Report) error {
	query := fmt.Sprintf(`
		SELECT a.id, a.balance, %d + coalesce(m.moved, 0)
		FROM %s a LEFT JOIN (
			SELECT id, sum(amount)::bigint AS moved FROM (
				SELECT payer AS id, -amount AS amount FROM %[3]s
				UNION ALL SELECT payee, amount FROM %[3]s) e
			GROUP BY id) m ON m.id = a.id
		ORDER BY a.id`, startBalance, l.table("account"), l.table("entry"))
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return err
	}
	var id, balance, want int64
	_, err = pgx.ForEachRow(rows, []any{&id, &balance, &want}, func() error {
		r.Sum += balance
		if balance != want && len(r.Unbalanced) < maxListed {
			r.Unbalanced = append(r.Unbalanced, fmt.Sprintf("account %d has %d, its entries say %d", id, balance, want))
		}
		return nil
	})
	return err
}

// Torn is a query that gives a line where the state that it sees is not one of whole transactions: each leaves the
// sum of all balances as it was, and every balance as its entries say.
func (l *Ledger) Torn() string {
	return fmt.Sprintf(`
SELECT pg_catalog.format('%%s accounts with %%s altogether, %%s of them unlike their entries', n, total, unlike)
  FROM (SELECT count(*), coalesce(sum(a.balance), 0)::bigint, count(*) FILTER (WHERE a.balance <> %d + coalesce(e.moved, 0))
          FROM %s a LEFT JOIN (SELECT id, sum(amount)::bigint
                 FROM (SELECT payer, -amount FROM %[3]s UNION ALL SELECT payee, amount FROM %[3]s) AS e (id, amount) GROUP BY id) AS e (id, moved) USING (id)) AS s (n, total, unlike)
 WHERE n <> %[4]d OR total <> %[5]d OR unlike > 0`, startBalance, l.table("account"), l.table("entry"), l.opts.Accounts, startBalance*l.opts.Accounts)
}
