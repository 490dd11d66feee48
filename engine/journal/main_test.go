package journal

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestMain(m *testing.M) { testpg.Main(m) }

// major of the target; PGRUNBOOK_TEST_MAJOR overrides.
func major(t *testing.T) int {
	t.Helper()
	s := os.Getenv("PGRUNBOOK_TEST_MAJOR")
	if s == "" {
		return 15
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newDB(t *testing.T) string {
	t.Helper()
	return testpg.NewDB(t, testpg.Shared(t, major(t)))
}

func server(t *testing.T, side, url string) *pg.Server {
	t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// connect opens a plain session that the test's end closes.
func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := server(t, "target", url).Connect(testContext(t), pg.Use{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// testPlan is a plan for the database behind url with the given steps.
func testPlan(t *testing.T, url string, ids ...engine.StepID) *engine.Plan {
	t.Helper()
	p := &engine.Plan{
		Format: engine.PlanFormat, ToolVersion: "1.0.0", Name: "erp", Runbook: engine.RunbookPin{Text: "runbook \"erp\" {}\n", Digest: "d"},
		Source: engine.Identity{SystemIdentifier: "1", Database: "src", DatabaseOID: 5, Major: 15}, Shapes: map[string]string{"public.a": "x"}, Scope: []byte(`{}`),
	}
	err := connect(t, url).QueryRow(testContext(t), identitySQL).Scan(&p.Target.Database, &p.Target.DatabaseOID, &p.Target.SystemIdentifier)
	if err != nil {
		t.Fatal(err)
	}
	p.Target.Major = major(t)
	for _, id := range ids {
		p.Steps = append(p.Steps, engine.StepPlan{ID: id, Phase: engine.PhaseCopy, Title: fmt.Sprintf("Do %s", id)})
	}
	return p
}

func open(t *testing.T, url string, o OpenOptions) *Run {
	t.Helper()
	o.ToolVersion = "1.0.0"
	r, err := Open(testContext(t), server(t, "target", url), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

// in runs f in a transaction on a fresh session.
func in(t *testing.T, url string, f func(ctx context.Context, tx pgx.Tx) error) error {
	t.Helper()
	ctx := testContext(t)
	return pgx.BeginFunc(ctx, connect(t, url), func(tx pgx.Tx) error { return f(ctx, tx) })
}

// scripted is a step whose Apply is the test's.
type scripted struct {
	id          engine.StepID
	fingerprint string
	apply       func(ctx context.Context, cp engine.Checkpoint) error
}

func (s *scripted) ID() engine.StepID   { return s.id }
func (s *scripted) Phase() engine.Phase { return engine.PhaseCopy }
func (s *scripted) Fingerprint() string { return s.fingerprint }
func (s *scripted) Plan(context.Context) (engine.StepPlan, error) {
	return engine.StepPlan{ID: s.id, Phase: s.Phase(), Title: string(s.id)}, nil
}

func (s *scripted) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if s.apply == nil {
		return nil
	}
	return s.apply(ctx, cp)
}

var discard = engine.SinkFunc(func(engine.Event) {})

// useNamed is a session as a step opens it.
func useNamed(name string) pg.Use { return pg.Use{Name: name} }

func ptr[T any](v T) *T { return &v }
