package load

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass/passtest"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

const step engine.StepID = "copy"

// pair is a source with captured tables and a target that has their structure without keys and
// indexes, and a journal.
type pair struct {
	t              *testing.T
	ctx            context.Context
	source, target string
	from, to       *pg.Server
	run            scope.Run
	journal        *journal.Run
	tables         []scope.Table
	builder        *builder
	cfg            Config

	mu     sync.Mutex
	events []engine.Event
}

func newPair(t *testing.T, ddl string, shapes ...func(*scope.Table)) *pair {
	t.Helper()
	source, target := testpg.Pair(t)
	return pairOf(t, source, target, ddl, shapes...)
}

func pairOf(t *testing.T, source, target, ddl string, shapes ...func(*scope.Table)) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	p := &pair{t: t, ctx: ctx, source: source, target: target}
	p.exec(source, ddl)
	p.exec(target, ddl)
	p.openJournal()
	p.builder = p.strip()
	p.tables = passtest.Tables(t, p.connect(source))
	from := p.connect(source)
	for _, c := range []*pgx.Conn{from, p.connect(target)} {
		if err := capture.Prepare(ctx, c, p.run); err != nil {
			t.Fatal(err)
		}
	}
	for i := range p.tables {
		for _, s := range shapes {
			s(&p.tables[i])
		}
		if err := capture.InstallOn(ctx, from, p.run, p.tables[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	p.cfg = Config{
		From: p.from, To: p.to, Run: p.run, Journal: p.journal, Step: step, Tables: p.tables, Builder: p.builder,
		Control: func() Control { return Control{Workers: 3} },
		Emit: func(e engine.Event) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.events = append(p.events, e)
		},
	}
	return p
}

const identitySQL = `SELECT current_database()::text, (SELECT oid FROM pg_database WHERE datname = current_database()), (SELECT system_identifier::text FROM pg_control_system())`

func (p *pair) openJournal() {
	p.t.Helper()
	plan := &engine.Plan{
		Format: engine.PlanFormat, ToolVersion: "1.0.0", Name: "t", Scope: []byte(`{}`), Steps: []engine.StepPlan{{ID: step, Phase: engine.PhaseCopy}},
		Source: engine.Identity{SystemIdentifier: "1", Database: "s", DatabaseOID: 5, Major: 15},
	}
	conn := p.connect(p.target)
	if err := conn.QueryRow(p.ctx, identitySQL).Scan(&plan.Target.Database, &plan.Target.DatabaseOID, &plan.Target.SystemIdentifier); err != nil {
		p.t.Fatal(err)
	}
	version, err := pg.Version(p.ctx, conn)
	if err != nil {
		p.t.Fatal(err)
	}
	plan.Target.Major = version / 10000
	bare := p.server("target", p.target, "", "")
	p.journal, err = journal.Open(p.ctx, bare, journal.OpenOptions{Plan: plan, ToolVersion: "1.0.0"})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.journal.Close(context.Background()) })
	p.run = scope.Run{ID: p.journal.ID, Mark: p.journal.Mark, Epoch: p.journal.Epoch, GateKey: p.journal.GateKey}
	p.from, p.to = p.server("source", p.source, p.run.ID, p.run.Mark), p.server("target", p.target, p.run.ID, p.run.Mark)
}

func (p *pair) server(side, url, id, mark string) *pg.Server {
	p.t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: url, RunID: id, Mark: mark})
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *pair) connect(url string) *pgx.Conn {
	p.t.Helper()
	conn, err := pgx.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (p *pair) exec(url, sql string) {
	p.t.Helper()
	conn, err := testpg.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(p.ctx) }()
	if _, err := conn.PgConn().Exec(p.ctx, sql).ReadAll(); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

func (p *pair) one(url, sql string) string {
	p.t.Helper()
	conn, err := testpg.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(p.ctx) }()
	var s string
	if err := conn.QueryRow(p.ctx, sql).Scan(&s); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// builder makes on the target what strip took away.
type builder struct {
	p       *pair
	keys    map[string][]string
	indexes map[string][]string
	unique  []string // after the first exact pass
	fail    func(table string) error
}

const constraintsSQL = `
SELECT c.conrelid::regclass::text, quote_ident(c.conname), pg_get_constraintdef(c.oid), c.contype::text FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
 WHERE r.relnamespace = 'public'::regnamespace AND c.contype IN ('p', 'u', 'x') AND c.conparentid = 0`

const indexesSQL = `
SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)`

// strip removes keys and indexes from the target and remembers how to make them.
func (p *pair) strip() *builder {
	b := &builder{p: p, keys: map[string][]string{}, indexes: map[string][]string{}}
	conn := p.connect(p.target)
	var drop []string
	for _, r := range rowsOf(p, conn, constraintsSQL, 4) {
		add := fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT %s %s", r[0], r[1], r[2])
		if r[3] == "p" {
			b.keys[r[0]] = append(b.keys[r[0]], add)
		} else {
			b.unique = append(b.unique, add)
		}
		drop = append(drop, fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s", r[0], r[1]))
	}
	for _, r := range rowsOf(p, conn, indexesSQL, 3) {
		b.indexes[r[0]] = append(b.indexes[r[0]], r[2])
		drop = append(drop, "DROP INDEX "+r[1])
	}
	p.exec(p.target, strings.Join(drop, ";"))
	return b
}

func rowsOf(p *pair, conn *pgx.Conn, sql string, n int) [][]string {
	p.t.Helper()
	rows, err := conn.Query(p.ctx, sql)
	if err != nil {
		p.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]string, error) {
		values := make([]string, n)
		into := make([]any, n)
		for i := range values {
			into[i] = &values[i]
		}
		return values, row.Scan(into...)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return list
}

func (b *builder) BuildKey(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	if b.fail != nil {
		if err := b.fail(t.Name.Name); err != nil {
			return err
		}
	}
	var has bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass($1) AND indisprimary)", tableName(t)).Scan(&has); err != nil || has {
		return err
	}
	return b.all(ctx, conn, b.keys[t.Name.Name])
}

func (b *builder) BuildIndexes(ctx context.Context, t scope.Table) error {
	if len(b.indexes[t.Name.Name]) == 0 {
		return nil
	}
	conn, err := b.p.to.Connect(ctx, pg.Use{Name: "build", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return b.all(ctx, conn, b.indexes[t.Name.Name])
}

func (b *builder) all(ctx context.Context, conn *pgx.Conn, sql []string) error {
	for _, s := range sql {
		s = strings.Replace(s, "CREATE INDEX ", "CREATE INDEX IF NOT EXISTS ", 1)
		if _, err := conn.Exec(ctx, "SET search_path = public"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) Analyze(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	_, err := conn.Exec(ctx, "ANALYZE "+tableName(t))
	return err
}

func (p *pair) load() {
	p.t.Helper()
	if err := New(p.cfg).Run(p.ctx); err != nil {
		p.t.Fatalf("the load failed: %v", err)
	}
}

func (p *pair) passer() *pass.Passer {
	passer := pass.New(pass.Config{From: p.from, To: p.to, Run: p.run, Tables: p.tables, Fence: func(ctx context.Context, tx pgx.Tx) error {
		return journal.Fence(ctx, tx, p.run.ID, p.run.Epoch)
	}})
	p.t.Cleanup(func() { _ = passer.Close(context.Background()) })
	return passer
}

// synced makes an exact pass, builds what waits for it, makes another and compares.
func (p *pair) synced() {
	p.t.Helper()
	if err := p.follow(); err != nil {
		p.t.Fatal(err)
	}
	p.equal()
}

func (p *pair) follow() error {
	passer := p.passer()
	for range 2 {
		if _, err := passer.Exact(p.ctx, pass.Options{Patience: 10 * time.Second}); err != nil {
			return fmt.Errorf("the pass failed: %w", err)
		}
		if err := p.builder.all(p.ctx, p.connect(p.target), p.builder.unique); err != nil {
			return fmt.Errorf("after the first exact pass: %w", err)
		}
		p.builder.unique = nil
	}
	return nil
}

func (p *pair) equal() {
	p.t.Helper()
	for _, d := range p.diffs() {
		p.t.Errorf("%s", d)
	}
}

func (p *pair) diffs() []testpg.Difference {
	p.t.Helper()
	var names []string
	for _, t := range p.tables {
		names = append(names, tableName(t))
	}
	diffs, err := testpg.Diff(p.ctx, p.source, p.target, names)
	if err != nil {
		p.t.Fatal(err)
	}
	return diffs
}

func (p *pair) messages() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, e := range p.events {
		b.WriteString(e.Message + "\n")
	}
	return b.String()
}

// chunks makes the tables' chunks so small that there are many.
func chunks(bytes int64) func(*scope.Table) {
	return func(t *scope.Table) { t.Chunk = bytes }
}
