package freeze

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

const gateKey = 4611686018427387905

// gateSQL is the gate as the gate package makes it, in its shortest form.
const gateSQL = `
CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO public.account SELECT g, 100 FROM generate_series(1, 10) g;
CREATE SCHEMA pgrunbook;
CREATE SEQUENCE pgrunbook.gate_flag MINVALUE 0 START 0;
CREATE FUNCTION pgrunbook.gate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0 AS $$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock_shared(4611686018427387905);
  IF (SELECT last_value FROM pgrunbook.gate_flag) OPERATOR(pg_catalog.<>) 0 THEN
    RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'moved';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER "!pgrunbook_gate" BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.account
  FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate();
ALTER TABLE public.account ENABLE ALWAYS TRIGGER "!pgrunbook_gate";`

// pair is two gated databases, the target's closed, and a freeze whose hooks do nothing.
type pair struct {
	t              *testing.T
	source, target string
	freeze         *Freeze
	marks          []string
	passed         func(ctx context.Context) error // stands in for the final pass
}

func newPair(t *testing.T) *pair {
	t.Helper()
	source, target := testpg.Pair(t)
	return pairOf(t, source, target)
}

// newPairOn has its source on a cluster of the test's own.
func newPairOn(t *testing.T, source *testpg.Cluster) *pair {
	t.Helper()
	_, target := testpg.Pair(t)
	return pairOf(t, testpg.NewDB(t, source), target)
}

func pairOf(t *testing.T, source, target string) *pair {
	t.Helper()
	p := &pair{t: t, source: source, target: target, passed: func(context.Context) error { return nil }}
	p.exec(source, gateSQL)
	p.exec(target, gateSQL+"; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
	p.freeze = &Freeze{
		From: server(t, "source", source), To: server(t, "target", target),
		Run:       scope.Run{ID: "r1", Mark: "mark", GateKey: gateKey, Epoch: 1},
		Budget:    2 * time.Second,
		Tables:    []scope.Table{{ID: 1, Name: scope.Name{Schema: "public", Name: "account"}}},
		Prepare:   func(context.Context) (Pass, error) { return fakePass{p}, nil },
		Sequences: func(context.Context) (int, error) { return 0, nil },
		Pending:   func(context.Context) (int64, error) { return 0, nil },
		Check:     func(context.Context) error { return nil },
		Decide:    func(context.Context, *Certificate) error { return nil },
		AtOpen:    func(context.Context, ExecFunc) error { return nil },
		Compare:   func(context.Context) (string, error) { return "nothing", nil },
		Mark:      func(name, _ string, _ time.Duration) { p.marks = append(p.marks, name) },
	}
	return p
}

type fakePass struct{ p *pair }

func (f fakePass) Run(ctx context.Context) (PassResult, error) {
	return PassResult{ID: "p"}, f.p.passed(ctx)
}
func (fakePass) Close(context.Context) {}

func server(t *testing.T, side, url string) *pg.Server {
	t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: url, RunID: "r1", Mark: "mark"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p *pair) connect(url string) *pgx.Conn {
	p.t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (p *pair) exec(url, sql string) {
	p.t.Helper()
	conn, err := testpg.Connect(context.Background(), url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		p.t.Fatal(err)
	}
}

// write writes as an application does and returns the SQLSTATE, empty for success.
func (p *pair) write(url string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(ctx, "UPDATE public.account SET balance = balance + 1 WHERE id = 1")
	return state(err)
}

// waits tries a write that has to wait: it ends with 57014 then.
func (p *pair) waits(url string) string {
	conn := p.connect(url)
	_, err := conn.PgConn().Exec(context.Background(), "SET statement_timeout = '150ms'; INSERT INTO public.account VALUES (77, 1)").ReadAll()
	return state(err)
}

func state(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgErr):
		return pgErr.Code
	default:
		return fmt.Sprintf("%T", err)
	}
}

// sides says who takes writes: exactly one side must.
func (p *pair) sides() string {
	p.t.Helper()
	s, t := p.write(p.source), p.write(p.target)
	switch {
	case s == "" && t == "25006":
		return "source"
	case s == "25006" && t == "":
		return "target"
	default:
		return fmt.Sprintf("source %q, target %q", s, t)
	}
}

func (p *pair) wantSide(want string) {
	p.t.Helper()
	if got := p.sides(); got != want {
		p.t.Fatalf("who takes writes: %s, want %s", got, want)
	}
}
