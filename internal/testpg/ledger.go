package testpg

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// LedgerOptions say what the writers do. The zero value is good.
type LedgerOptions struct {
	Schema        string        // of the tables; defaults to "ledger"
	Accounts      int           // rows that the writers share; defaults to 100
	TxTimeout     time.Duration // after which a client gives a transaction up and reconnects; defaults to 10s
	Pause         time.Duration // between a client's transactions; defaults to none
	RollBackEvery int           // every n-th transaction is rolled back on purpose; defaults to 10, negative: none
	AppName       string        // application_name; defaults to "ledger"
}

// Ledger is an application whose commits are counted outside the database.
// Each transaction moves an amount between two accounts and inserts an entry
// with a unique client and number, so that afterwards every acknowledged commit
// can be looked for, every refused one must be absent, and the balances must
// agree with the entries.
type Ledger struct {
	opts LedgerOptions
	id   string // tells our clients from another ledger's

	mu      sync.Mutex
	clients [][]outcome // by client, by number
	stats   Stats
	lastAck time.Time
	gap     time.Duration // the longest since TakeGap
}

// outcome is what is known of one transaction.
type outcome byte

const (
	unknown      outcome = iota // COMMIT was sent, no answer came
	acknowledged                // the server said COMMIT
	refused                     // an error or ROLLBACK before or in place of it
)

// Stats are the counts so far. Gaps are over all clients together.
type Stats struct {
	Acknowledged, Unknown, Refused int
	ByServer                       []int          // acknowledged commits by position in Run's urls
	Errors                         map[string]int // by SQLSTATE; "connection" for the rest
	LongestGap                     time.Duration  // without an acknowledged commit
	GapBegan                       time.Time
}

// NewLedger makes a ledger; Setup makes its tables.
func NewLedger(o LedgerOptions) *Ledger {
	o.Schema, o.AppName = orDefault(o.Schema, "ledger"), orDefault(o.AppName, "ledger")
	if o.Accounts == 0 {
		o.Accounts = 100
	}
	if o.TxTimeout == 0 {
		o.TxTimeout = 10 * time.Second
	}
	if o.RollBackEvery == 0 {
		o.RollBackEvery = 10
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return &Ledger{opts: o, id: hex.EncodeToString(id[:]), stats: Stats{Errors: map[string]int{}}}
}

// startBalance is what each account holds at first.
const startBalance = 1000

// DDL are the statements that make the ledger's tables and fill the accounts.
func (l *Ledger) DDL() []string {
	return []string{
		"CREATE SCHEMA IF NOT EXISTS " + pgx.Identifier{l.opts.Schema}.Sanitize(),
		"CREATE TABLE " + l.table("account") + " (id int PRIMARY KEY, balance bigint NOT NULL)",
		"CREATE TABLE " + l.table("entry") + ` (
			client text NOT NULL,
			seq    bigint NOT NULL,
			payer  int NOT NULL REFERENCES ` + l.table("account") + `,
			payee  int NOT NULL REFERENCES ` + l.table("account") + `,
			amount bigint NOT NULL,
			at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
			PRIMARY KEY (client, seq))`,
		fmt.Sprintf("INSERT INTO %s SELECT i, %d FROM pg_catalog.generate_series(1, %d) i", l.table("account"), startBalance, l.opts.Accounts),
	}
}

func (l *Ledger) table(name string) string {
	return pgx.Identifier{l.opts.Schema, name}.Sanitize()
}

// Setup runs DDL.
func (l *Ledger) Setup(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("setting up the ledger: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range l.DDL() {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("setting up the ledger: %w", err)
		}
	}
	return nil
}

// Stats returns the counts so far. An ongoing gap counts.
func (l *Ledger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.ByServer = append([]int(nil), l.stats.ByServer...)
	s.Errors = map[string]int{}
	for k, v := range l.stats.Errors {
		s.Errors[k] = v
	}
	return s
}

// newClient opens a page of the ledger.
func (l *Ledger) newClient() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients = append(l.clients, nil)
	return len(l.clients) - 1
}

func (l *Ledger) clientName(client int) string { return fmt.Sprintf("%s-%d", l.id, client) }

// next records a transaction that is about to begin, as unknown until more is.
func (l *Ledger) next(client int) (seq int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[client] = append(l.clients[client], unknown)
	l.stats.Unknown++
	return len(l.clients[client]) - 1
}

func (l *Ledger) settle(client, seq, server int, o outcome) {
	if o == unknown {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[client][seq] = o
	l.stats.Unknown--
	if o == refused {
		l.stats.Refused++
		return
	}
	l.stats.Acknowledged++
	for len(l.stats.ByServer) <= server {
		l.stats.ByServer = append(l.stats.ByServer, 0)
	}
	l.stats.ByServer[server]++
	l.gapUntil(time.Now())
}

// gapUntil closes the gap since the last acknowledged commit.
func (l *Ledger) gapUntil(now time.Time) {
	gap := now.Sub(l.lastAck)
	if !l.lastAck.IsZero() && gap > l.stats.LongestGap {
		l.stats.LongestGap, l.stats.GapBegan = gap, l.lastAck
	}
	if !l.lastAck.IsZero() {
		l.gap = max(l.gap, gap)
	}
	l.lastAck = now
}

// TakeGap gives the longest time without an acknowledged commit since the last call, or since the
// beginning. An ongoing gap counts.
func (l *Ledger) TakeGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap := max(l.gap, time.Since(l.lastAck))
	l.gap = 0
	return gap
}
