package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

const schema = `CREATE TABLE public.t (id serial PRIMARY KEY, v text); INSERT INTO public.t (v) VALUES ('a');
CREATE TABLE public.p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE public.p_1 PARTITION OF public.p FOR VALUES IN (1);`

// pair is a source with a small schema and an empty target.
type pair struct {
	t        *testing.T
	from, to string // superusers' URLs
	blocks   string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	from, to := testpg.Pair(t)
	p := &pair{t: t, from: from, to: to}
	p.source(schema)
	return p
}

func (p *pair) source(statements ...string) { p.exec(p.from, statements...) }
func (p *pair) target(statements ...string) { p.exec(p.to, statements...) }

func (p *pair) exec(url string, statements ...string) {
	p.t.Helper()
	conn := p.open(url)
	defer func() { _ = conn.Close(context.Background()) }()
	for _, s := range append([]string{"SET default_transaction_read_only = off"}, statements...) {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			p.t.Fatalf("%s: %v", s, err)
		}
	}
}

// open gives a session without our settings, as an application has it.
func (p *pair) open(url string) *pgx.Conn {
	p.t.Helper()
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		p.t.Fatal(err)
	}
	conf.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(context.Background(), conf)
	if err != nil {
		p.t.Fatal(err)
	}
	return conn
}

func database(t *testing.T, u string) string {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(parsed.Path, "/")
}

// facts gathers what a plan would.
func (p *pair) facts() *Facts {
	p.t.Helper()
	ctx := context.Background()
	rb, diags := runbook.Parse("t.runbook.hcl", []byte("runbook \"t\" {}\n"+p.sides()+p.blocks), runbook.Options{})
	if diags.HasErrors() {
		p.t.Fatal(diags)
	}
	in := Input{Runbook: rb, Dump: DumpTool{Major: 18, Version: "18.5", Needed: true}}
	open := func(side, url string) (*pg.Server, *pgx.Conn) {
		s, err := pg.New(pg.Config{Side: side, URL: url})
		if err != nil {
			p.t.Fatal(err)
		}
		conn, err := s.Connect(ctx, pg.Use{ReadOnly: true})
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return s, conn
	}
	in.Source, in.SourceConn = open("source", p.from)
	in.Target, in.TargetConn = open("target", p.to)
	var err error
	if in.Scope, _, err = scope.Resolve(ctx, scope.Input{Source: in.SourceConn, Runbook: rb}); err != nil {
		p.t.Fatal(err)
	}
	f, err := Gather(ctx, in)
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

func (p *pair) sides() string {
	out := ""
	for _, side := range []string{"source", "target"} {
		if !strings.Contains(p.blocks, side+" {") {
			out += side + " { url = \"postgresql://" + side + ".example.com/x\" }\n"
		}
	}
	return out
}

func (p *pair) findings() []engine.Finding {
	p.t.Helper()
	findings, err := Run(context.Background(), p.facts())
	if err != nil {
		p.t.Fatal(err)
	}
	return findings
}

// found gives the findings that are no info, as "CODE severity side".
func (p *pair) found() []string {
	p.t.Helper()
	var out []string
	for _, f := range p.findings() {
		if f.Text == "" || f.Fix == "" || strings.Contains(f.Text, "%!") || strings.Contains(f.Fix, "%!") {
			p.t.Errorf("%s has no text or no fix: %+v", f.Code, f)
		}
		if f.Severity != engine.SeverityInfo {
			out = append(out, fmt.Sprintf("%s %s %s", f.Code, f.Severity, f.Side))
		}
	}
	return out
}

func (p *pair) want(codes ...string) {
	p.t.Helper()
	if diff := cmp.Diff(codes, p.found()); diff != "" {
		p.t.Error(diff)
	}
}

func TestNothingToFind(t *testing.T) {
	newPair(t).want()
	seen := map[string]bool{}
	for _, c := range Checks() {
		if seen[c.Code] || c.Name == "" || c.Code < "PRE100" {
			t.Errorf("check %s %q", c.Code, c.Name)
		}
		seen[c.Code] = true
	}
}

// What other sessions drop under a check does not stop it; what stays wrong does, after a few looks.
func TestChecksLookAgain(t *testing.T) {
	f := newPair(t).facts()
	for fails, want := range map[int]int{1: 2, 100: checkTries} {
		looks := 0
		c := Check{Name: "test", Run: func(ctx context.Context, f *Facts) ([]engine.Finding, error) {
			if looks++; looks > fails {
				return nil, nil
			}
			_, err := f.From.conn.Exec(ctx, "DO $$ BEGIN RAISE 'cache lookup failed for relation 4711' USING ERRCODE = 'internal_error'; END $$")
			return nil, err
		}}
		if _, err := c.try(context.Background(), f); looks != want || (err != nil) != (fails >= want) {
			t.Errorf("failing %d times: %d looks, error %v", fails, looks, err)
		}
	}
	lost := 0
	_, err := Check{Name: "test", Run: func(ctx context.Context, f *Facts) ([]engine.Finding, error) {
		lost++
		_, err := f.From.conn.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		return nil, err
	}}.try(context.Background(), f)
	if err == nil || lost != 1 {
		t.Errorf("with a session that is gone: %d looks, error %v", lost, err)
	}
}

func TestA4Servers(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Facts)
		want   string
		run    func(context.Context, *Facts) ([]engine.Finding, error)
	}{
		"target older":  {func(f *Facts) { f.To.Identity.Major = 11 }, "older than the source", versions},
		"too old":       {func(f *Facts) { f.From.Identity.Major = 9 }, "too old", versions},
		"unknown":       {func(f *Facts) { f.To.Identity.Major = 30 }, "newer than this program", versions},
		"same database": {func(f *Facts) { f.To.Identity = f.From.Identity }, "same database", differentDatabases},
		"same server": {func(f *Facts) {
			database := f.To.Identity.Database
			f.To.Identity = f.From.Identity
			f.To.Identity.Database = database
		}, "databases of the same server", differentDatabases},
		"a copy of the server": {func(f *Facts) { f.To.Identity.SystemIdentifier = f.From.Identity.SystemIdentifier }, "", differentDatabases},
		"standby":              {func(f *Facts) { f.From.Identity.InRecovery = true }, "standby", notInRecovery},
		"old pg_dump":          {func(f *Facts) { f.Dump.Major = 14 }, "refuses to read", dumpTool},
		"no pg_dump":           {func(f *Facts) { f.Dump.Err = errors.New("none") }, "No usable pg_dump: none", dumpTool},
		"holed pg_dump":        {func(f *Facts) { f.Dump.Warning = "it lacks fixes" }, "it lacks fixes.", dumpTool},
		"full lock table": {func(f *Facts) {
			f.From.Settings["max_locks_per_transaction"] = "0"
			f.To.Settings["max_locks_per_transaction"] = "0"
		}, "", lockTable},
		"small lock table": {func(f *Facts) {
			f.To.Settings["max_locks_per_transaction"], f.To.Settings["max_connections"], f.To.Settings["max_prepared_transactions"] = "1", "10", "0"
		}, "lock table has 10 slots", lockTable},
		"few sessions": {func(f *Facts) { f.From.Settings["max_connections"] = "5" }, "0 sessions are free", connections},
	} {
		t.Run(name, func(t *testing.T) {
			f := newPair(t).facts()
			tt.change(f)
			got, err := tt.run(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) == 0 || !strings.Contains(got[0].Text, tt.want)) {
				t.Errorf("found %+v, want %q", got, tt.want)
			}
		})
	}
}

func TestSameDatabaseForReal(t *testing.T) {
	p := newPair(t)
	p.to = p.from
	if got := p.found(); !slices.Contains(got, "PRE103 error target") {
		t.Errorf("found %v", got)
	}
	source, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	p.to = testpg.NewDB(t, testpg.Shared(t, source))
	p.want("PRE103 warning target")
}

func TestConnection(t *testing.T) {
	p := newPair(t)
	server, err := pg.New(pg.Config{Side: "source", URL: "postgresql://db.example.com/x?keepalives=1&sslmode=require"})
	if err != nil {
		t.Fatal(err)
	}
	f := p.facts()
	f.From.server = server
	for _, run := range []func(context.Context, *Facts) ([]engine.Finding, error){tlsMode, connectionWarnings} {
		got, err := run(context.Background(), f)
		if err != nil || len(got) != 1 || got[0].Side != engine.Source {
			t.Errorf("found %+v, %v", got, err)
		}
	}
}

func TestSourceRights(t *testing.T) {
	p := newPair(t)
	role := "mover_" + database(t, p.from)
	p.blocks = fmt.Sprintf("source {\n  url = \"postgresql://source.example.com/x\"\n  apply_role = %q\n}\n", role)
	p.want("PRE120 error source")
	p.source("CREATE ROLE "+role+" LOGIN", "CREATE SCHEMA closed", "CREATE TABLE closed.c (id serial PRIMARY KEY)", "REVOKE ALL ON SCHEMA public FROM public",
		// A small catalog is read whole, and of each row the cheapest condition is asked first.
		"CREATE TYPE closed.pair AS (a int)", "DO 'BEGIN FOR i IN 1 .. 40 LOOP EXECUTE ''CREATE SEQUENCE closed.n'' || i; END LOOP; END'",
		"ALTER DATABASE "+ident(database(t, p.from))+" SET enable_indexscan = off", "ALTER DATABASE "+ident(database(t, p.from))+" SET enable_bitmapscan = off")
	t.Cleanup(func() {
		p.source("ALTER DATABASE "+ident(database(t, p.from))+" OWNER TO postgres", "DROP OWNED BY "+role, "DROP ROLE "+role)
	})
	p.source("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY")
	p.want("PRE121 error source", "PRE122 error source", "PRE122 error source", "PRE122 error source", "PRE122 error source", "PRE122 error source",
		"PRE123 error source", "PRE123 error source", "PRE123 error source", "PRE124 error source", "PRE125 error source", "PRE126 warning source", "PRE184 warning source")
	// Every fix is a statement that mends it.
	findings, err := Run(context.Background(), p.facts())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Severity != engine.SeverityInfo && f.Fix != `GRANT "postgres" TO `+ident(role)+";" {
			p.source(f.Fix)
		}
	}
	p.want("PRE122 error source", "PRE123 error source")
	p.source("REVOKE SET ON PARAMETER session_replication_role FROM " + role)
	p.want("PRE122 error source", "PRE123 error source", "PRE125 error source")
	p.blocks += "rollback { enabled = false }\n"
	p.want("PRE122 error source")
	owner := "owner_" + database(t, p.from)
	p.source("CREATE ROLE "+owner, "ALTER TABLE closed.c OWNER TO "+owner, "ALTER TABLE public.t OWNER TO "+owner, "ALTER TABLE public.p OWNER TO "+owner,
		"ALTER TABLE public.p_1 OWNER TO "+owner, "GRANT "+owner+" TO "+role)
	t.Cleanup(func() { p.source("DROP OWNED BY "+owner+" CASCADE", "DROP ROLE "+owner) })
	p.blocks += "schema { roles = \"skip\" }\n"
	p.want()
	// A member that inherits nothing, from 16 on by the membership itself.
	p.source("ALTER ROLE "+role+" NOINHERIT", "REVOKE "+owner+" FROM "+role, "GRANT "+owner+" TO "+role)
	if got := p.found(); !slices.Contains(got, "PRE122 error source") {
		t.Errorf("found %v of a role that inherits nothing", got)
	}
	p.mended()
	p.want()
}

// mover is a role of the target that shall apply, and its block.
func (p *pair) mover() (role string, block func(more string) string) {
	role = "mover_" + database(p.t, p.to)
	return role, func(more string) string {
		return fmt.Sprintf("target {\n  url = \"postgresql://target.example.com/x\"\n  apply_role = %q\n%s}\n", role, more)
	}
}

// made makes it.
func (p *pair) made(role string) {
	p.target("CREATE ROLE " + role)
	p.t.Cleanup(func() {
		p.target("ALTER DATABASE "+ident(database(p.t, p.to))+" OWNER TO postgres", "DROP OWNED BY "+role, "DROP ROLE "+role)
	})
}

func TestD13TargetRights(t *testing.T) {
	p := newPair(t)
	db := ident(database(t, p.to))
	owner := "owner_" + database(t, p.from)
	role, block := p.mover()
	p.blocks = block("")
	p.want("PRE130 error target")
	p.made(role)
	const public = "PRE135 error target" // from 15 on not everybody may create in it
	p.want("PRE131 error target", "PRE132 error target", "PRE133 error target", "PRE134 warning target", public, "PRE184 warning target")
	p.target("ALTER DATABASE " + db + " SET default_transaction_read_only = on")
	p.want("PRE131 error target", "PRE132 error target", "PRE133 error target", "PRE134 warning target", public, "PRE183 warning target", "PRE184 error target")
	p.target("ALTER DATABASE "+db+" RESET default_transaction_read_only", "GRANT pg_read_all_stats, pg_signal_backend TO "+role)
	p.source("CREATE ROLE "+owner, "ALTER TABLE public.t OWNER TO "+owner, "CREATE SCHEMA other", "CREATE FUNCTION other.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
	t.Cleanup(func() { p.source("DROP OWNED BY "+owner+" CASCADE", "DROP ROLE "+owner) })
	p.blocks = block("") + "schema { owners = { postgres = " + fmt.Sprintf("%q", role) + " } }\n"
	p.target("GRANT CREATE ON DATABASE "+db+" TO "+role, "GRANT SET ON PARAMETER session_replication_role TO "+role)
	p.want("PRE133 error target", public, "PRE184 warning target")
	p.target("ALTER DATABASE " + db + " OWNER TO " + role)
	p.want("PRE133 error target")
	p.blocks = block("") + "schema {\n  roles  = \"create\"\n  owners = { postgres = " + fmt.Sprintf("%q", role) + " }\n}\n"
	p.want()
	p.source("CREATE EXTENSION file_fdw", "CREATE EXTENSION tablefunc") // tablefunc is trusted
	p.want("PRE152 warning target")
	p.target("CREATE EXTENSION file_fdw")
	p.want()
	p.blocks = block("") + "schema { roles = \"skip\" }\n"
	p.want("PRE133 error target") // owners that are there are set all the same
	p.blocks = block("  replica_role_function = \"public.become\"\n") + "schema {\n  roles  = \"skip\"\n  owners = { postgres = " + fmt.Sprintf("%q", role) + " }\n}\n"
	p.want("PRE132 error target")
	p.target("CREATE FUNCTION public.become(text) RETURNS void LANGUAGE sql AS ''", "REVOKE ALL ON FUNCTION public.become FROM public")
	p.want("PRE132 error target")
	p.target("GRANT EXECUTE ON FUNCTION public.become TO " + role)
	p.want()
}

// A target that somebody else made is gated, loaded and its sequences set by the role that applies.
func TestD13ExistingTargetRights(t *testing.T) {
	p := newPair(t)
	role, owner := "mover_"+database(t, p.to), "owner_"+database(t, p.to)
	p.target(schema, "DELETE FROM public.t", "CREATE ROLE "+role+" LOGIN", "CREATE ROLE "+owner, "ALTER TABLE public.t OWNER TO "+owner, "ALTER TABLE public.p OWNER TO "+owner,
		"ALTER TABLE public.p_1 OWNER TO "+owner, "REVOKE DELETE ON public.p FROM "+owner, "GRANT SET ON PARAMETER session_replication_role TO "+role, "GRANT pg_read_all_stats, pg_signal_backend TO "+role,
		fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", ident(database(t, p.to)), role), "CREATE SCHEMA closed", "CREATE TABLE closed.c (id int PRIMARY KEY)", "ALTER TABLE closed.c OWNER TO "+owner)
	p.source("CREATE SCHEMA closed", "CREATE TABLE closed.c (id int PRIMARY KEY)")
	super := p.to
	t.Cleanup(func() { p.exec(super, "DROP OWNED BY "+role+", "+owner+" CASCADE", "DROP ROLE "+role+", "+owner) })
	p.blocks = fmt.Sprintf("target {\n  url = \"postgresql://target.example.com/x\"\n  apply_role = %q\n}\nschema { mode = \"existing\" }\ncutover { read_only = false }\n", role)
	const table, sequence = "PRE136 error target", "PRE137 error target"
	p.want(table, table, table, table, table, table, sequence) // USAGE, the owner, and reading and writing in two schemas
	// Every fix is a statement that mends it; an owner has the rest, unless it was revoked.
	p.target("GRANT "+owner+" TO "+role, "GRANT USAGE ON SCHEMA closed TO "+role)
	p.want(table)
	for _, f := range p.findings() {
		if f.Code == "PRE136" {
			p.target(f.Fix)
		}
	}
	p.want()
	p.target("ALTER TABLE public.t ENABLE ROW LEVEL SECURITY", "ALTER TABLE public.t FORCE ROW LEVEL SECURITY")
	p.want("PRE138 error target")
	p.target("ALTER ROLE " + role + " BYPASSRLS")
	p.want()

	// Who plans and may not read says so, and hides nothing: neither a table with rows nor another check.
	p.to = strings.Replace(p.to, "postgres@", role+"@", 1)
	p.exec(super, "ALTER TABLE public.t OWNER TO postgres", "INSERT INTO public.t VALUES (1, 'x')", "INSERT INTO closed.c VALUES (1)",
		"REVOKE ALL ON public.t FROM "+role+", "+owner, "REVOKE SELECT ON pg_catalog.pg_event_trigger FROM public")
	p.want(table, table, table, sequence, "PRE150 error target", "PRE150 error target", "PRE182 error ")
}
