package load

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Builder makes what a table gets after its rows.
type Builder interface {
	BuildKey(ctx context.Context, conn *pgx.Conn, t scope.Table) error
	BuildIndexes(ctx context.Context, t scope.Table) error
	Analyze(ctx context.Context, conn *pgx.Conn, t scope.Table) error
}

// Control is what people may change while a load runs.
type Control struct {
	Workers int // chunks at the same time
	Paused  bool
}

// Config is what a Loader is made of.
type Config struct {
	From, To *pg.Server
	Run      scope.Run
	Journal  *journal.Run
	Step     engine.StepID // under which the journal keeps the chunks
	Tables   []scope.Table // those whose rows do not move live are left alone
	Builder  Builder
	// Control is polled at least every 2 s. Nil means 4 workers.
	Control func() Control
	// Rate slows the bytes of all workers down. Nil is no limit.
	Rate *Rate
	// Bulk loads whole tables by other means (pg_dump); its tables are empty when it is called.
	Bulk func(ctx context.Context, tables []scope.Table) error
	// Loaded says whether somebody else has loaded the tables of method external; an error is the
	// reason why the load cannot go on.
	Loaded func(ctx context.Context, tables []scope.Table) error
	// Emptied is called in the transaction that takes the rows of a table which starts over.
	Emptied func(ctx context.Context, tx pgx.Tx, t scope.Table) error
	// Check compares a table's fingerprint on From after its last chunk, and when a relation of it is another one
	// than was cut. An error ends the load: whoever runs it makes the table right, starts it over and
	// runs the load again.
	Check func(ctx context.Context, conn *pgx.Conn, t scope.Table) error
	// Explain looks for changes of a table on From that keep its rows from being written. An error
	// ends the load, as that of Check.
	Explain func(ctx context.Context, conn *pgx.Conn, t scope.Table) error
	// Progress is told of every table that moved, at most twice a second each.
	Progress func(Progress)
	Emit     func(engine.Event)
	Log      *slog.Logger
}

// Stage says how far one table is.
type Stage string

// The stages of a table, in order.
const (
	Copying   Stage = "copying"
	Scrubbing Stage = "scrubbing"
	Keying    Stage = "building the key"
	Indexing  Stage = "building indexes"
	Analyzing Stage = "analyzing"
	Ready     Stage = "ready"
)

// Progress is one table's state for people.
type Progress struct {
	Table scope.Table
	Stage Stage
	Rows  int64 // copied and committed
	Bytes int64 // copied, those in flight included
	Size  int64 // estimate of Bytes when done
}

// Loader loads tables. Run is for one goroutine.
type Loader struct {
	cfg    Config
	tables map[int32]scope.Table
	gate   *valve
	report *reporter
	kick   chan struct{} // a chunk was committed

	finishing finishSessions
}

// New prepares a Loader; it does not connect.
func New(cfg Config) *Loader {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Emit == nil {
		cfg.Emit = func(engine.Event) {}
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
	if cfg.Control == nil {
		cfg.Control = func() Control { return Control{Workers: 4} }
	}
	if cfg.Rate == nil {
		cfg.Rate = NewRate(0)
	}
	l := &Loader{cfg: cfg, tables: map[int32]scope.Table{}, gate: newValve(cfg.Control), kick: make(chan struct{}, 1)}
	for _, t := range cfg.Tables {
		if t.Data == scope.Live {
			l.tables[t.ID] = t
		}
	}
	l.report = newReporter(cfg.Progress)
	return l
}

// relation names t with its partitions, but without children by legacy inheritance.
func relation(t scope.Table) string {
	if t.Kind == scope.Partitioned {
		return tableName(t)
	}
	return "ONLY " + tableName(t)
}

func tableName(t scope.Table) string { return pg.Name(t.Schema, t.Name.Name) }

// stepOf is where the journal keeps a table's chunks: what workers must not claim is apart.
func (l *Loader) stepOf(t scope.Table) engine.StepID {
	if streamed(t) {
		return l.cfg.Step
	}
	return l.cfg.Step + engine.StepID("."+string(t.Method))
}

func streamed(t scope.Table) bool { return t.Method == scope.Stream || t.Method == "" }

func keyed(t scope.Table) bool { return t.Identity == scope.ByKey || t.Identity == "" }

// sleep waits or ends with ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
