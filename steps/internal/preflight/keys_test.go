package preflight

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A key that only the target has is named with the statement that drops it; one that follows from a key of
// the source is not.
func TestKeysOfTheTargetAlone(t *testing.T) {
	p := newPair(t)
	p.source("CREATE TABLE public.pairs (a int, b int, c int, PRIMARY KEY (a)); CREATE UNIQUE INDEX ON public.pairs (lower(b::text)); CREATE UNIQUE INDEX ON public.pairs (c) WHERE c > 0; CREATE TABLE public.empty (a int)")
	p.target(schema, "DELETE FROM public.t", "CREATE TABLE public.pairs (a int, b int, c int, PRIMARY KEY (a)); CREATE UNIQUE INDEX ON public.pairs (lower(b::text)); CREATE UNIQUE INDEX ON public.pairs (c) WHERE c > 0; CREATE TABLE public.empty (a int UNIQUE)",
		"CREATE UNIQUE INDEX ON public.pairs (b, a)")
	p.blocks = "schema { mode = \"existing\" }\ntable \"public.empty\" { data = \"none\" }\n"
	p.want()
	p.target("CREATE UNIQUE INDEX \"Mine\" ON public.pairs (b)", "CREATE UNIQUE INDEX part ON public.pairs (c)", "ALTER TABLE public.t ADD CONSTRAINT no_two EXCLUDE USING hash (v WITH =)", "CREATE UNIQUE INDEX nulls ON public.pairs (a) NULLS NOT DISTINCT")
	const alone = "PRE155 warning target"
	p.want(alone, alone, alone, alone)
	p.mended()
	p.want()
}

// A generated column whose parent's is plain is in servers before 16 alone; what the finding names makes it a plain one.
func TestF59GeneratedColumnsOfChildren(t *testing.T) {
	p := newPair(t)
	p.source("CREATE TABLE public.up (id int PRIMARY KEY, v int); CREATE TABLE public.down (v int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id)) INHERITS (public.up)",
		"CREATE TABLE public.p_2 (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id * 2) STORED); ALTER TABLE public.p ADD COLUMN v int; ALTER TABLE public.p ATTACH PARTITION public.p_2 FOR VALUES IN (2)")
	p.blocks = "tables { exclude = [\"public.down\", \"public.up\", \"public.p\"] }\n"
	p.want()
	p.blocks = ""
	p.want("PRE156 error source", "PRE156 error source")
	p.mended()
	p.want()
}

// A NOT NULL that no row was asked about, which servers have from 18 on, may be broken by rows.
func TestNotNullThatIsNotValid(t *testing.T) {
	servers := testpg.Shared(t, 18)
	p := &pair{t: t, from: testpg.NewDB(t, servers), to: testpg.NewDB(t, servers)}
	p.source(schema, "ALTER TABLE public.t ALTER v DROP NOT NULL", "CREATE TABLE public.left_out (a int)", "INSERT INTO public.t (id, v) VALUES (4711, NULL)")
	p.blocks = "tables { exclude = [\"public.left_out\"] }\n"
	before := p.found()
	p.source("ALTER TABLE public.t ADD CONSTRAINT \"Not V\" NOT NULL v NOT VALID", "ALTER TABLE public.left_out ADD CONSTRAINT nn NOT NULL a NOT VALID")
	p.want(append(slices.Clone(before), "PRE157 error source")...)
	p.blocks += "table \"public.t\" { data = \"none\" }\n"
	p.want(before...)
	p.blocks = strings.TrimSuffix(p.blocks, "table \"public.t\" { data = \"none\" }\n")
	p.source("DELETE FROM public.t WHERE v IS NULL")
	for _, f := range p.findings() {
		if f.Code == "PRE157" {
			p.source(f.Fix)
		}
	}
	p.want(before...)
}

// What is created empty is neither loaded nor followed: policies of it hold for nobody of ours.
func TestRowSecurityOfTablesWithoutRows(t *testing.T) {
	p := newPair(t)
	role, block := p.mover()
	p.made(role)
	owner := "owner_" + database(t, p.from)
	for _, side := range []func(...string){p.source, p.target} {
		side("CREATE ROLE " + owner)
		t.Cleanup(func() { side("DROP OWNED BY "+owner+" CASCADE", "DROP ROLE "+owner) })
	}
	p.source("ALTER TABLE public.t OWNER TO "+owner, "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY", "ALTER TABLE public.t FORCE ROW LEVEL SECURITY")
	security := func() (out []engine.Finding) {
		for _, f := range p.findings() {
			if f.Code == "PRE138" || f.Code == "PRE124" {
				out = append(out, f)
			}
		}
		return out
	}
	p.blocks = block("") + fmt.Sprintf("source {\n url = \"postgresql://source.example.com/x\"\n apply_role = %q\n}\n", owner)
	rows := p.blocks
	got := security()
	if len(got) != 2 || !strings.Contains(got[0].Fix, "ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY") || !strings.Contains(got[1].Fix, "ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY") {
		t.Errorf("found %+v", got)
	}
	for _, none := range []string{"tables { exclude_data = [\"public.t\"] }\n", "table \"public.t\" { data = \"none\" }\n"} {
		p.blocks = rows + none
		if got := security(); len(got) > 0 {
			t.Errorf("%sfound %+v", none, got)
		}
	}
	p.blocks = rows
	p.source("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY") // the other way that the finding names
	if got := security(); len(got) > 0 {
		t.Errorf("found %+v", got)
	}
}

// An extension that is elsewhere on the target is an error where any definition that is carried names a part
// of it, and a warning where only its own do.
func TestWhatNeedsAnExtension(t *testing.T) {
	p := newPair(t)
	p.source("CREATE SCHEMA ext", "CREATE EXTENSION pg_stat_statements SCHEMA ext", "CREATE EXTENSION pgcrypto SCHEMA ext", "CREATE EXTENSION lo SCHEMA ext", "CREATE TABLE public.use (id int PRIMARY KEY, v text, o oid)")
	p.target("CREATE EXTENSION pg_stat_statements", "CREATE EXTENSION pgcrypto", "CREATE EXTENSION lo")
	severity := func(extension string) engine.Severity {
		t.Helper()
		at := slices.IndexFunc(p.findings(), func(f engine.Finding) bool {
			return f.Code == "PRE152" && f.Object == extension && strings.Contains(f.Text, "in schema")
		})
		if at < 0 {
			t.Fatalf("nothing is said of %s", extension)
		}
		return p.findings()[at].Severity
	}
	for _, own := range []string{"pg_stat_statements", "pgcrypto", "lo"} {
		if got := severity(own); got != engine.SeverityWarning {
			t.Errorf("%s, which nothing needs: %s", own, got)
		}
	}
	for what, sql := range map[string][2]string{
		"a view":    {"CREATE VIEW public.uses AS SELECT ext.gen_salt('bf') AS salt", "DROP VIEW public.uses"},
		"a CHECK":   {"ALTER TABLE public.use ADD CONSTRAINT uses CHECK (ext.crypt(v, v) <> v)", "ALTER TABLE public.use DROP CONSTRAINT uses"},
		"a domain":  {"CREATE DOMAIN public.uses AS text CHECK (ext.crypt(VALUE, VALUE) <> VALUE)", "DROP DOMAIN public.uses"},
		"a default": {"ALTER TABLE public.use ALTER v SET DEFAULT ext.gen_salt('bf')", "ALTER TABLE public.use ALTER v DROP DEFAULT"},
		"a policy":  {"CREATE POLICY uses ON public.use USING (ext.crypt(v, v) <> v)", "DROP POLICY uses ON public.use"},
		"a trigger": {"CREATE TRIGGER uses BEFORE UPDATE ON public.use FOR EACH ROW WHEN (ext.crypt(NEW.v, NEW.v) <> NEW.v) EXECUTE FUNCTION suppress_redundant_updates_trigger()", "DROP TRIGGER uses ON public.use"},
		"an index":  {"CREATE INDEX uses ON public.use (ext.digest(v, 'sha256'))", "DROP INDEX public.uses"},
		"a rule":    {"CREATE RULE uses AS ON DELETE TO public.use WHERE ext.crypt(OLD.v, OLD.v) = OLD.v DO INSTEAD NOTHING", "DROP RULE uses ON public.use"},
		"a matview": {"CREATE MATERIALIZED VIEW public.uses AS SELECT ext.gen_salt('bf') AS salt", "DROP MATERIALIZED VIEW public.uses"},
	} {
		p.source(sql[0])
		if got := severity("pgcrypto"); got != engine.SeverityError {
			t.Errorf("pgcrypto, which %s needs: %s", what, got)
		}
		p.source(sql[1])
	}
	p.source("CREATE TRIGGER uses BEFORE DELETE ON public.use FOR EACH ROW EXECUTE FUNCTION ext.lo_manage(o)")
	if got := severity("lo"); got != engine.SeverityError {
		t.Errorf("lo, which a trigger calls: %s", got)
	}
}

// One control file that the target cannot read, here that of the packages for 10, ends its list of extensions.
// What it has is known still, and nothing else is left unchecked on the oldest major.
func TestExtensionsThatCannotBeListed(t *testing.T) {
	server := testpg.Shared(t, 10)
	p := &pair{t: t, from: testpg.NewDB(t, server), to: testpg.NewDB(t, server)}
	p.source("CREATE TABLE public.t (id int PRIMARY KEY)", "CREATE EXTENSION citext", "CREATE EXTENSION pgcrypto")
	p.target("CREATE EXTENSION pgcrypto")
	var got []string
	for _, f := range p.findings() {
		if strings.Contains(f.Text, "could not be checked") {
			t.Errorf("%+v", f)
		}
		if f.Code == "PRE152" {
			got = append(got, string(f.Severity)+" "+f.Object)
		}
	}
	if !slices.Equal(got, []string{"warning citext"}) {
		t.Errorf("found %q", got)
	}
}
