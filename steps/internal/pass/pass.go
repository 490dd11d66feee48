package pass

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Config is what a Passer is made of.
type Config struct {
	From, To *pg.Server
	Run      scope.Run
	// Tables are the ones that follow: loaded, scrubbed, with their key in place. Tables whose
	// rows do not move live are left out by the Passer itself.
	Tables []scope.Table
	// Fence fails where another runner has taken the run. It is called in every transaction on To
	// before the first row.
	Fence func(ctx context.Context, tx pgx.Tx) error
	// Check compares the fingerprint of captured tables; nil means no check. It runs outside the
	// pass's own transaction, since that sees the catalog as of its snapshot.
	Check func(ctx context.Context, conn *pgx.Conn) error
	Log   *slog.Logger
	Emit  func(engine.Event)
}

// Options of one exact pass.
type Options struct {
	// LockTimeout is the longest wait for a table lock on From. It stays below deadlock_timeout,
	// so that the application is never a deadlock's victim because of us. Defaults to 300 ms.
	LockTimeout time.Duration
	// Patience is how long locks, serialization failures and lost connections are tried again.
	// Defaults to none.
	Patience time.Duration
	// Snapshot asks for the source snapshot of the pass to stay open for others.
	Snapshot bool
	// Prove compares the rows that were written on To with those that were read on From, for tables
	// with up to so many changed keys in the pass. A difference fails the pass. 0 compares none.
	Prove int64
	// InTarget runs in the pass's transaction on To after its rows are in. From is in the pass's
	// snapshot, with no table locked any more.
	InTarget func(ctx context.Context, tx pgx.Tx, from *pgx.Conn) error

	outwaits bool  // who holds a table on To is waited for by outwait, with nothing held, and not in the pass
	most     int64 // captured changes that it takes; over that it fails as *large. 0 takes any number
}

// Result of one pass.
type Result struct {
	PassID     string
	Taken      int64 // captured changes; one key may be there many times
	Keys       int64 // distinct keys and images taken
	Rows       int64 // written on To
	Deleted    int64 // deleted on To
	Bytes      int64 // read on From
	Proved     int64 // keys whose rows were compared; see Options.Prove
	Tables     int   // that had anything to apply
	SnapshotAt time.Time
	Snapshot   string        // text of pg_current_snapshot()
	Took       time.Duration // from the snapshot to the commit
	Trips      time.Duration // what the network took of the time of one that Follow made
	// Empty says that From had nothing new. PassID is then the last one that To's watermark shows.
	Empty bool
	// ExportedSnapshot is for SET TRANSACTION SNAPSHOT on From until Release is called.
	ExportedSnapshot string

	release func()
}

// Release ends the exported snapshot. It may be called more than once.
func (r *Result) Release() {
	if r.release != nil {
		r.release()
		r.release = nil
	}
}

// Passer makes passes from one side to the other over connections of its own. Its methods are not
// for concurrent use, except SetTables.
type Passer struct {
	cfg Config

	mu     sync.Mutex
	tables map[int32]scope.Table

	from *fromSession
	to   *toSession
	beat *pgx.Conn // heartbeat and fingerprint, on From
	snap *pgx.Conn // holds an exported snapshot

	lastPass  string    // id in To's watermark
	marked    time.Time // when the watermark was written last
	permanent map[int32]bool
	blocked   time.Duration // by locks on To, since somebody asked
	worker    int           // which one of a drain's
	pace      rates         // of the passes of a loop
	paced     []int32       // the tables that they are of
}

// New prepares a Passer; it does not connect.
func New(cfg Config) *Passer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Emit == nil {
		cfg.Emit = func(engine.Event) {}
	}
	p := &Passer{cfg: cfg, permanent: map[int32]bool{}}
	p.SetTables(cfg.Tables)
	return p
}

// SetTables replaces the set of following tables from the next pass on.
func (p *Passer) SetTables(tables []scope.Table) {
	set := make(map[int32]scope.Table, len(tables))
	for _, t := range tables {
		if t.Data == scope.Live && t.Capture != scope.NoCapture && (t.Key != nil || t.Identity != scope.ByKey) {
			set[t.ID] = t
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tables = set
}

func (p *Passer) following() map[int32]scope.Table {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tables
}

// Close ends the sessions.
func (p *Passer) Close(ctx context.Context) error {
	var errs []error
	if c := p.toConn(); c != nil && !c.IsClosed() {
		errs = append(errs, p.to.close(ctx))
	}
	for _, c := range []*pgx.Conn{p.fromConn(), p.beat, p.snap} {
		if c != nil && !c.IsClosed() {
			errs = append(errs, c.Close(ctx))
		}
	}
	p.from, p.to, p.beat, p.snap = nil, nil, nil, nil
	return errors.Join(errs...)
}

func (p *Passer) fromConn() *pgx.Conn {
	if p.from == nil {
		return nil
	}
	return p.from.conn
}

func (p *Passer) toConn() *pgx.Conn {
	if p.to == nil {
		return nil
	}
	return p.to.conn
}

// keyed reports whether rows of t are followed by key.
func keyed(t scope.Table) bool { return t.Identity == scope.ByKey || t.Identity == "" }
