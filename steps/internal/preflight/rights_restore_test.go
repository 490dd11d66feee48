package preflight

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

// mended runs the statements of all findings on the side that they are for.
func (p *pair) mended() {
	p.t.Helper()
	for _, f := range p.findings() {
		switch {
		case f.Severity == engine.SeverityInfo:
		case f.Side == engine.Source:
			p.source(f.Fix)
		default:
			p.target(f.Fix)
		}
	}
}

// A target on which its administrator has made schemas, and extensions in schemas of their own.
func TestTargetWithSchemasOfItsOwn(t *testing.T) {
	p := newPair(t)
	role, block := p.mover()
	owner, other := "owner_"+database(t, p.to), "other_"+database(t, p.to)
	for _, side := range []func(...string){p.source, p.target} {
		side("CREATE ROLE "+owner, "CREATE ROLE "+other)
		t.Cleanup(func() { side("DROP OWNED BY "+owner+", "+other+" CASCADE", "DROP ROLE "+owner+", "+other) })
	}
	p.source("CREATE SCHEMA gis", "CREATE EXTENSION tablefunc SCHEMA gis", "GRANT USAGE ON SCHEMA gis TO "+other, "CREATE SCHEMA app AUTHORIZATION "+owner,
		"CREATE TABLE app.t (id int PRIMARY KEY, v gis.tablefunc_crosstab_2[])", "ALTER TABLE app.t OWNER TO "+owner,
		"CREATE SCHEMA two AUTHORIZATION "+other, "CREATE VIEW two.v AS SELECT 1 AS a", "ALTER VIEW two.v OWNER TO "+owner,
		"CREATE ROLE stranger_"+owner, "CREATE SCHEMA aside", "CREATE FUNCTION aside.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "ALTER FUNCTION aside.f() OWNER TO stranger_"+owner)
	t.Cleanup(func() { p.source("DROP OWNED BY stranger_"+owner, "DROP ROLE stranger_"+owner) })
	p.target("CREATE SCHEMA app", "CREATE EXTENSION tablefunc SCHEMA app")
	p.blocks = "tables { exclude = [\"aside.*\"] }\n"
	p.want("PRE152 error target") // what is excluded needs no owner there
	p.mended()
	p.want()

	p.made(role)
	p.target("GRANT SET ON PARAMETER session_replication_role TO "+role, "GRANT pg_read_all_stats, pg_signal_backend TO "+role,
		fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", ident(database(t, p.to)), role), fmt.Sprintf("GRANT %s, %s TO %s", owner, other, role))
	p.blocks += block("") + fmt.Sprintf("schema { owners = { postgres = %q } }\ncutover { read_only = false }\n", owner)
	const lacking, warned = "PRE135 error target", "PRE135 warning target"
	p.want(lacking, lacking, warned, lacking, lacking, lacking) // to make in app and public; gis for other; owner in app, public and two
	p.mended()
	p.want()

	p.source("ALTER TABLE app.t ENABLE ROW LEVEL SECURITY", "ALTER TABLE app.t FORCE ROW LEVEL SECURITY")
	p.want("PRE138 error target")
	p.mended()
	p.want()
}

// Each right on a schema is asked for once, and so is a schema that two owners need.
func TestRightsOnSchemasAreAskedForOnce(t *testing.T) {
	p := newPair(t)
	role, block := p.mover()
	p.made(role)
	var owners []string
	for _, name := range []string{"one_", "two_"} {
		owner := name + database(t, p.from)
		owners = append(owners, owner)
		for _, side := range []func(...string){p.source, p.target} {
			side("CREATE ROLE " + owner)
			t.Cleanup(func() { side("DROP OWNED BY "+owner+" CASCADE", "DROP ROLE "+owner) })
		}
	}
	p.source("CREATE SCHEMA fresh; CREATE SCHEMA there", "GRANT CREATE, USAGE ON SCHEMA fresh, there TO "+owners[0]+", "+owners[1])
	for i, owner := range owners {
		p.source(fmt.Sprintf("CREATE TABLE fresh.t%d (id int PRIMARY KEY); ALTER TABLE fresh.t%[1]d OWNER TO %s; CREATE TABLE there.t%[1]d (id int PRIMARY KEY); ALTER TABLE there.t%[1]d OWNER TO %[2]s", i, owner))
	}
	p.target("CREATE SCHEMA there")
	p.blocks = block("")
	seen := map[string]int{}
	for _, f := range p.findings() {
		if f.Code != "PRE135" {
			continue
		}
		for _, statement := range strings.Split(f.Fix, ";") {
			if statement = strings.TrimSpace(statement); statement != "" && !strings.HasPrefix(statement, "--") {
				seen[statement]++
			}
		}
	}
	for statement, n := range seen {
		if n > 1 {
			t.Errorf("%d times: %s", n, statement)
		}
	}
	for _, owner := range owners {
		for _, schema := range []string{"fresh", "there"} {
			if grant := fmt.Sprintf("GRANT CREATE ON SCHEMA %s TO %s", ident(schema), ident(owner)); seen[grant] != 1 {
				t.Errorf("%d times: %s", seen[grant], grant)
			}
		}
	}
}

// right is a row of the table of rights, as statements that give it and take it away, %[1]s being the role
// that applies, %[2]s the owner, %[3]s the database and %[4]s a role with settings in it.
type right struct {
	give, take string
	codes      []string // what is found without it, and the side
}

// Each row of the table of rights in the reference is asked for by the preflight, and a role that has what
// the table says, on both sides, is asked for nothing else.
func TestRightsOfTheReference(t *testing.T) {
	text, err := os.ReadFile("../../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## Rights\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rights := map[string]right{
		"CREATE on the database":                           {"GRANT CREATE ON DATABASE %[3]s TO %[1]s", "REVOKE CREATE ON DATABASE %[3]s FROM %[1]s", []string{"PRE121 source", "PRE131 target"}},
		"USAGE on schemas, SELECT on tables and sequences": {"GRANT USAGE ON SCHEMA closed TO %[1]s", "REVOKE USAGE ON SCHEMA closed FROM %[1]s", []string{"PRE122 source", "PRE135 target"}},
		"CREATE on schemas that are there":                 {"GRANT CREATE ON SCHEMA public, closed TO %[1]s, %[2]s", "REVOKE CREATE ON SCHEMA public, closed FROM %[1]s, %[2]s", []string{"PRE135 target"}},
		"membership in the owners":                         {"GRANT %[2]s TO %[1]s", "REVOKE %[2]s FROM %[1]s", []string{"PRE122 source", "PRE123 source", "PRE133 target"}},
		"BYPASSRLS":                                        {"ALTER ROLE %[1]s BYPASSRLS", "ALTER ROLE %[1]s NOBYPASSRLS", []string{"PRE124 source", "PRE138 target"}},
		"to set `session_replication_role`":                {"GRANT SET ON PARAMETER session_replication_role TO %[1]s", "REVOKE SET ON PARAMETER session_replication_role FROM %[1]s", []string{"PRE125 source", "PRE132 target"}},
		"membership in `pg_read_all_stats`, `pg_signal_backend`": {
			"GRANT pg_read_all_stats, pg_signal_backend TO %[1]s", "REVOKE pg_read_all_stats, pg_signal_backend FROM %[1]s",
			[]string{"PRE126 source", "PRE134 target", "PRE163 source"},
		},
		"CREATEROLE, and the ADMIN OPTION on those roles": {
			"ALTER ROLE %[1]s CREATEROLE; GRANT %[4]s TO %[1]s WITH ADMIN OPTION", "ALTER ROLE %[1]s NOCREATEROLE; REVOKE ADMIN OPTION FOR %[4]s FROM %[1]s", []string{"PRE139 target"},
		},
		"ownership of the database": {"ALTER DATABASE %[3]s OWNER TO %[1]s", "ALTER DATABASE %[3]s OWNER TO postgres", []string{"PRE184 source", "PRE184 target"}},
	}
	var rows []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(table, -1)[1:] { // without the head
		if strings.Trim(m[1], "-") != "" {
			rows = append(rows, m[1])
		}
	}
	p := newPair(t)
	role, owner, app := "mover_"+database(t, p.from), "owner_"+database(t, p.from), "app_"+database(t, p.from)
	sides := map[string]func(...string){database(t, p.from): p.source, database(t, p.to): p.target}
	run := func(sql string) {
		for name, side := range sides {
			side(strings.NewReplacer("%[1]s", role, "%[2]s", owner, "%[3]s", ident(name), "%[4]s", app).Replace(sql))
		}
	}
	run("CREATE ROLE %[1]s")
	run("CREATE ROLE %[2]s")
	run("CREATE ROLE %[4]s")
	t.Cleanup(func() {
		run("ALTER DATABASE %[3]s OWNER TO postgres")
		run("DROP OWNED BY %[1]s, %[2]s CASCADE")
		run("DROP ROLE %[1]s, %[2]s, %[4]s")
	})
	run("CREATE SCHEMA closed")
	p.source("DROP TABLE public.t, public.p", fmt.Sprintf("CREATE TABLE public.t (id serial PRIMARY KEY); ALTER TABLE public.t OWNER TO %[1]s; CREATE TABLE closed.c (id serial PRIMARY KEY); ALTER TABLE closed.c OWNER TO %[1]s;"+
		"ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; ALTER TABLE public.t FORCE ROW LEVEL SECURITY; ALTER SCHEMA closed OWNER TO postgres", owner))
	p.source(fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET work_mem = '8MB'", app, ident(database(t, p.from))))
	p.blocks = fmt.Sprintf("source {\n url = \"postgresql://source.example.com/x\"\n apply_role = %[1]q\n}\ntarget {\n url = \"postgresql://target.example.com/x\"\n apply_role = %[1]q\n}\nlimit \"sessions\" {\n max = 10\n then = \"pause\"\n}\n", role)
	owning := rights["ownership of the database"]
	var seen []string
	for _, name := range rows {
		r, ok := rights[name]
		if !ok {
			t.Fatalf("the reference has a right %q, and this test has no statement for it", name)
		}
		seen = append(seen, name)
		if name != "ownership of the database" { // it brings CREATE
			run(r.give)
		}
	}
	if len(seen) != len(rights) {
		t.Errorf("the reference has %q only", seen)
	}
	check := func(what string, codes []string) {
		t.Helper()
		var got []string
		for _, f := range p.findings() {
			if f.Severity != engine.SeverityInfo {
				got = append(got, f.Code+" "+string(f.Side))
			}
		}
		slices.Sort(codes)
		if diff := cmp.Diff(codes, slices.Compact(got)); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("all but the ownership", owning.codes)
	for _, name := range rows {
		if r := rights[name]; r.give != owning.give {
			run(r.take)
			check("without "+name, slices.Concat(r.codes, owning.codes))
			run(r.give)
		}
	}
	run(owning.give)
	check("all", nil)
}
