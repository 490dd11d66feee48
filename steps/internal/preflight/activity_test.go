package preflight

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

func TestActivity(t *testing.T) {
	p := newPair(t)
	gid := "preflight " + database(t, p.from)
	p.source("BEGIN; INSERT INTO public.t (v) VALUES ('x'); PREPARE TRANSACTION " + pg.Literal(gid))
	p.want("PRE141 warning source")
	p.source("ROLLBACK PREPARED " + pg.Literal(gid))
	f := p.facts()
	conn := p.open(p.from)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(context.Background(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	young, err := longTransactions(context.Background(), f)
	if err != nil || len(young) > 0 {
		t.Errorf("a young transaction: %v, %v", young, err)
	}
	old, err := openFor(context.Background(), f, 0)
	if err != nil || len(old) != 1 || !strings.Contains(old[0].Text, fmt.Sprintf("pid %d", conn.PgConn().PID())) {
		t.Errorf("an old transaction: %v, %v", old, err)
	}
}

func TestData(t *testing.T) {
	p := newPair(t)
	p.target("CREATE TABLE public.t (id int, v text); INSERT INTO public.t VALUES (1, 'x')")
	p.want("PRE150 error target")
	p.blocks = "schema { mode = \"existing\" }\n"
	p.want("PRE150 error target")
	p.blocks += "table \"public.t\" { method = \"external\" }\n"
	p.want()
	p.blocks = "schema { mode = \"existing\" }\n"
	p.target("TRUNCATE public.t")
	p.want()
	p.target("INSERT INTO public.t VALUES (1, 'x'); CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.run (state text); INSERT INTO pgrunbook.run VALUES ('aborted')")
	p.want("PRE150 error target")
	p.target("INSERT INTO pgrunbook.run VALUES ('active')")
	p.want()
	p.target("DROP TABLE public.t")
	p.source("SELECT lo_from_bytea(0, 'x')")
	p.want("PRE153 error source")
	p.target("SELECT lo_from_bytea(0, 'x')")
	p.want("PRE153 error source", "PRE153 warning target")
	p.blocks = "rollback { enabled = false }\n"
	p.want("PRE153 error source")
	p.blocks = "cutover { large_objects = \"ignore\" }\n"
	p.want()
	p.source("CREATE EXTENSION citext")
	p.want("PRE152 warning target")
	f := p.facts()
	for name, tt := range map[string]struct {
		from, to string
		want     engine.Severity
	}{
		"same": {"UTF8", "UTF8", ""}, "converted": {"LATIN1", "UTF8", engine.SeverityWarning}, "narrowed": {"UTF8", "LATIN1", engine.SeverityError},
		"any bytes": {"SQL_ASCII", "UTF8", engine.SeverityError}, "both any": {"SQL_ASCII", "SQL_ASCII", engine.SeverityWarning},
	} {
		f.From.Encoding, f.To.Encoding = tt.from, tt.to
		got, err := encodings(context.Background(), f)
		if err != nil || len(got) != min(len(tt.want), 1) || len(got) == 1 && got[0].Severity != tt.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	f.To.Collate = "de_DE"
	if got, err := collations(context.Background(), f); err != nil || len(got) != 1 {
		t.Errorf("collations: %v, %v", got, err)
	}
}

// A restore would stop half way at each of these names, whatever has it; a schema may be there.
func TestNamesThatAreTaken(t *testing.T) {
	p := newPair(t)
	p.source(`CREATE SCHEMA shop; CREATE TYPE public.mood AS ENUM ('x'); CREATE FUNCTION public.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE VIEW public.v AS SELECT 1 AS x; CREATE SCHEMA hidden; CREATE TABLE hidden.h (id int PRIMARY KEY); CREATE VIEW public.of_hidden AS SELECT * FROM hidden.h`)
	p.blocks = "tables { exclude = [\"hidden.*\"] }\n"
	theirs := []string{
		`CREATE FUNCTION public.f(text) RETURNS int LANGUAGE sql AS 'SELECT 1'`, "CREATE TABLE public.theirs (id int)", "CREATE EXTENSION tablefunc",
		"CREATE SCHEMA hidden", "CREATE TABLE hidden.h (id int)", "CREATE VIEW public.of_hidden AS SELECT 1 AS x",
	}
	// An extension's table is on both sides, with its index, and comes from no dump.
	const ref = "CREATE TABLE public.ref (id int PRIMARY KEY); ALTER EXTENSION tablefunc ADD TABLE public.ref"
	p.source("CREATE EXTENSION tablefunc", ref)
	p.target(append(theirs, ref)...)
	got, err := targetTables(context.Background(), p.facts())
	if err != nil || len(got) != 1 || got[0].Severity != engine.SeverityInfo || !strings.Contains(got[0].Text, "table public.theirs") {
		t.Errorf("nothing that clashes: %+v, %v", got, err)
	}
	p.target("CREATE SCHEMA shop", "CREATE DOMAIN public.mood AS int", "CREATE FUNCTION public.f(int) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
		"CREATE SEQUENCE public.t_id_seq", "CREATE VIEW public.p AS SELECT 1 AS x", "CREATE TABLE public.v (id int)", "CREATE TYPE public.p_1 AS (x int)", "CREATE TABLE public.t_pkey (id int)")
	got, err = targetTables(context.Background(), p.facts())
	if err != nil || len(got) != 2 || got[0].Severity != engine.SeverityError {
		t.Fatalf("found %+v, %v", got, err)
	}
	for _, want := range []string{"type public.mood", "function public.f(integer)", "sequence public.t_id_seq", "view public.p", "table public.v", "type public.p_1", "table public.t_pkey"} {
		if !strings.Contains(got[0].Text, want) {
			t.Errorf("%s is not in %q", want, got[0].Text)
		}
	}
	if strings.Contains(got[0].Text, "schema shop") { // what belongs there goes there
		t.Errorf("a schema that is there: %q", got[0].Text)
	}
	if strings.Contains(got[0].Text, "hidden") || strings.Contains(got[0].Text, "theirs") || strings.Contains(got[0].Text, "public.ref") {
		t.Errorf("what does not clash: %q", got[0].Text)
	}
}

func TestMissingExtension(t *testing.T) {
	p := newPair(t)
	p.source("CREATE EXTENSION citext")
	f := p.facts()
	if _, err := f.From.conn.Exec(context.Background(), "SET default_transaction_read_only = off"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.From.conn.Exec(context.Background(), "UPDATE pg_extension SET extname = 'no_such_extension' WHERE extname = 'citext'"); err != nil {
		t.Fatal(err)
	}
	got, err := extensions(context.Background(), f)
	if err != nil || len(got) != 1 || got[0].Severity != engine.SeverityError || got[0].Object != "no_such_extension" {
		t.Errorf("found %+v, %v", got, err)
	}
}

func TestA7Replication(t *testing.T) {
	p := newPair(t)
	p.source("CREATE PUBLICATION few FOR TABLE public.t")
	p.want()
	p.source("CREATE PUBLICATION all_of_it FOR ALL TABLES")
	p.want("PRE160 error source")
	p.source("DROP PUBLICATION all_of_it")
	p.target("CREATE PUBLICATION all_of_it FOR ALL TABLES")
	p.want("PRE160 error target")
	p.target("DROP PUBLICATION all_of_it; CREATE SCHEMA theirs; CREATE PUBLICATION theirs FOR TABLES IN SCHEMA theirs")
	p.want()
	p.target("CREATE PUBLICATION ours FOR TABLES IN SCHEMA public")
	p.want("PRE160 error target")
	p.target("DROP PUBLICATION ours; DROP PUBLICATION theirs; DROP SCHEMA theirs")
	sub := "s_" + database(t, p.from)
	p.source("CREATE SUBSCRIPTION " + sub + " CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false, slot_name = NONE)")
	t.Cleanup(func() { p.source("DROP SUBSCRIPTION " + sub) })
	p.want()
	p.source("SET session_replication_role = replica; UPDATE pg_subscription SET subenabled = true WHERE subname = '" + sub + "'")
	p.want("PRE161 warning source")
	p.source("UPDATE pg_subscription SET subenabled = false WHERE subname = '" + sub + "'")
	f := p.facts()
	f.From.Settings["synchronous_standby_names"] = "*"
	if got, err := standbys(context.Background(), f); err != nil || len(got) != 1 || got[0].Severity != engine.SeverityError {
		t.Errorf("standbys: %+v, %v", got, err)
	}
}

func TestR22TimeoutsAndSwallowedErrors(t *testing.T) {
	p := newPair(t)
	db := ident(database(t, p.from))
	p.source("ALTER DATABASE " + db + " SET lock_timeout = '10min'")
	p.want()
	p.source("ALTER DATABASE " + db + " SET statement_timeout = '3s'")
	p.want("PRE180 warning source")
	role := "app_" + database(t, p.from)
	p.source("CREATE ROLE "+role, "ALTER ROLE "+role+" SET lock_timeout = '1s'", "ALTER ROLE "+role+" IN DATABASE "+db+" SET idle_in_transaction_session_timeout = '2s'")
	t.Cleanup(func() { p.source("DROP ROLE " + role) })
	f := p.facts()
	f.From.Settings["transaction_timeout"] = "3500" // as of the server's configuration, for everybody
	short, err := timeouts(context.Background(), f)
	if err != nil || len(short) != 1 {
		t.Fatalf("found %+v, %v", short, err)
	}
	for _, want := range []string{
		"statement_timeout = 3s for database " + database(t, p.from), "lock_timeout = 1s for role " + role,
		"idle_in_transaction_session_timeout = 2s for role " + role + ", database ", "transaction_timeout = 3.5s for everybody",
	} {
		if !strings.Contains(short[0].Text, want) {
			t.Errorf("%q is not in %q", want, short[0].Text)
		}
	}
	if n := strings.Count(short[0].Text, "everybody"); n != 1 {
		t.Errorf("%d settings for everybody in %q", n, short[0].Text)
	}
	p.source("ALTER ROLE "+role+" RESET ALL", "ALTER ROLE "+role+" IN DATABASE "+db+" RESET ALL")
	p.blocks = "cutover { max_write_block = \"1s\" }\n"
	p.want()
	p.source(`CREATE FUNCTION public.careful() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; EXCEPTION WHEN unique_violation THEN NULL; END $$`)
	p.want()
	p.source(`CREATE FUNCTION public.careless() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; EXCEPTION
  WHEN unique_violation OR others THEN NULL; END $$`)
	p.want("PRE181 warning source")
	p.source("DROP FUNCTION public.careless", "CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
		"CREATE EVENT TRIGGER et_"+database(t, p.from)+" ON ddl_command_end EXECUTE FUNCTION public.e()")
	p.want("PRE182 warning source")
	p.source("ALTER DATABASE " + db + " SET default_transaction_read_only = true")
	p.target("ALTER DATABASE " + ident(database(t, p.to)) + " SET default_transaction_read_only = on")
	p.want("PRE182 warning source", "PRE183 warning source", "PRE183 warning target")
}

func TestGuc(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "1500": 1500 * time.Millisecond, "2s": 2 * time.Second, "1.5 min": 90 * time.Second, "1h": time.Hour, "10us": 10 * time.Microsecond} {
		if got, ok := guc(text); !ok || got != want {
			t.Errorf("%s is %s, %v", text, got, ok)
		}
	}
	if _, ok := guc("soon"); ok {
		t.Error("soon was read")
	}
}

func TestEarlierRun(t *testing.T) {
	p := newPair(t)
	p.source("CREATE SCHEMA pgrunbook; COMMENT ON SCHEMA pgrunbook IS 'pgrunbook run abc'; CREATE SEQUENCE pgrunbook.gate_flag")
	p.target("CREATE TABLE public.t (id int PRIMARY KEY)")
	p.want("PRE105 error source") // never the advice to drop the target's tables
	p.source("CREATE TABLE pgrunbook.delta_int (x int)")
	p.want("PRE105 error source", "PRE150 error target")
	p.target("CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.run (state text); INSERT INTO pgrunbook.run VALUES ('active')")
	p.want()
}
