package scope

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestPatterns(t *testing.T) {
	conn, _ := source(t, 15, append(slices.Clone(partitioned), "CREATE SCHEMA other", "CREATE TABLE other.a (id serial PRIMARY KEY)", "CREATE SCHEMA empty",
		"CREATE TABLE keep (id int PRIMARY KEY)", "CREATE TABLE tmp_1 (id serial PRIMARY KEY)", "CREATE VIEW tmp_view AS SELECT 1 AS one",
		"CREATE SCHEMA old", "CREATE TABLE old.mother (id int PRIMARY KEY)", "CREATE TABLE old.daughter (PRIMARY KEY (id)) INHERITS (old.mother)")...)
	tests := []struct {
		blocks         string
		tables, errors []string
		warnings       []string
		schemas        []string
		excluded       []string
	}{
		{`tables { include = ["public.*"] }`, []string{"keep", "tmp_1", "tree"}, nil, nil, []string{"empty", "old", "other"}, nil},
		{``, []string{"daughter", "mother", "a", "keep", "tmp_1", "tree"}, nil, nil, nil, nil},
		{`tables { exclude = ["public.tmp_*"] }`, []string{"daughter", "mother", "a", "keep", "tree"}, nil, nil, nil, []string{"public.tmp_1", "public.tmp_1_id_seq", "public.tmp_view"}},
		{`tables { exclude = ["other.*"] }`, []string{"daughter", "mother", "keep", "tmp_1", "tree"}, nil, nil, []string{"other"}, nil},
		{
			`tables {
  include      = ["public.*", "publik.*"]
  exclude      = ["public.none"]
  exclude_data = ["public.keep"]
}
table "other.a" { data = "at_freeze" }`,
			[]string{"keep", "tmp_1", "tree"},
			nil,
			[]string{"PRE001 publik.*", "PRE001 public.none", "PRE001 other.a"},
			[]string{"empty", "old", "other"},
			nil,
		},
		{`tables { exclude = ["public.tree_25"] }`, []string{"daughter", "mother", "a", "keep", "tmp_1", "tree"}, []string{"PRE003 public.tree_25"}, nil, nil, nil},
		{`tables { exclude_data = ["public.tree_26_*"] }`, []string{"daughter", "mother", "a", "keep", "tmp_1", "tree"}, []string{"PRE003 public.tree_26_a", "PRE003 public.tree_26_b"}, nil, nil, nil},
		{`tables { include = ["old.daughter"] }`, []string{"daughter"}, []string{"PRE012 old.daughter"}, nil, []string{"empty", "other", "public"}, []string{"old.mother"}},
		{`tables { include = ["public.tree_25"] }`, nil, []string{"PRE002 ", "PRE003 public.tree_25"}, nil, []string{"empty", "old", "other", "public"}, nil},
		{
			`tables {
  include = ["public.*"]
  exclude = ["public.tree"]
}`,
			[]string{"keep", "tmp_1"},
			nil, nil,
			[]string{"empty", "old", "other"},
			[]string{"public.tree", "public.tree_25", "public.tree_26", "public.tree_26_a", "public.tree_26_b"},
		},
	}
	for _, tt := range tests {
		s, findings := resolve(t, conn, tt.blocks)
		var tables, excluded []string
		for _, tab := range s.Tables {
			tables = append(tables, tab.Name.Name)
		}
		for _, n := range s.ExcludedTables {
			excluded = append(excluded, n.Display())
		}
		errs := codes(findings, engine.SeverityError)
		slices.Sort(errs)
		if diff := cmp.Diff(tt.tables, tables); diff != "" {
			t.Errorf("%s\ntables %s", tt.blocks, diff)
		}
		if diff := cmp.Diff(tt.errors, errs); diff != "" {
			t.Errorf("%s\nerrors %s", tt.blocks, diff)
		}
		if diff := cmp.Diff(tt.warnings, codes(findings, engine.SeverityWarning)); diff != "" {
			t.Errorf("%s\nwarnings %s", tt.blocks, diff)
		}
		if diff := cmp.Diff(tt.schemas, s.ExcludedSchemas); diff != "" {
			t.Errorf("%s\nexcluded schemas %s", tt.blocks, diff)
		}
		if tt.excluded != nil || len(excluded) > 0 && !strings.Contains(tt.blocks, "tree_25\"] }") {
			if diff := cmp.Diff(tt.excluded, excluded); diff != "" {
				t.Errorf("%s\nexcluded tables %s", tt.blocks, diff)
			}
		}
	}
	s, _ := resolve(t, conn, `tables { exclude_data = ["public.keep"] }`)
	if got := s.table(t, "keep"); got.Data != NoData || got.Capture != NoCapture {
		t.Errorf("exclude_data: %+v", got)
	}
}

func TestA3S7Rules(t *testing.T) {
	conn, admin := source(t, 15, "CREATE TABLE k (a int NOT NULL, b int NOT NULL, c int, PRIMARY KEY (a), UNIQUE (b, a), UNIQUE (c))",
		"CREATE TABLE log (v text)", "CREATE TABLE bare ()", "CREATE TABLE p (id int PRIMARY KEY)", "CREATE TABLE c (id int PRIMARY KEY, p int CONSTRAINT to_p REFERENCES p)")
	s, findings := resolve(t, conn, `table "public.k" {
  key    = ["a", "b"]
  method = "external"
  chunk  = "1MiB"
}
table "public.log" { identity = "append_only" }
table "public.bare" { identity = "full_row" }
table "public.c" { data = "at_freeze" }`)
	if got := codes(findings, engine.SeverityError); got != nil {
		t.Errorf("errors %v", got)
	}
	if k := s.table(t, "k"); k.Key == nil || k.Key.Index.Name != "k_b_a_key" || k.Key.Primary || k.Method != External || k.Chunk != 1<<20 {
		t.Errorf("k: %+v", k)
	}
	if l := s.table(t, "log"); l.Identity != AppendOnly || l.Data != Live || l.Capture != Statement {
		t.Errorf("log: %+v", l)
	}
	for _, name := range []string{"c", "bare"} {
		if c := s.table(t, name); c.Data != AtFreeze {
			t.Errorf("%s: %+v", name, c)
		}
	}
	for blocks, want := range map[string]string{
		`table "public.k" { key = ["c"] }`:                                                 "PRE005 public.k",
		`table "public.k" { key = ["b"] }`:                                                 "PRE005 public.k",
		`tables { exclude_data = ["public.p"] }`:                                           "PRE007 public.c",
		`table "public.p" { data = "none" }`:                                               "PRE007 public.c",
		"table \"public.l*\" { data = \"none\" }\ntable \"public.*g\" { data = \"live\" }": "PRE004 public.log",
		`table "public.log" { data = "live" }`:                                             "PRE006 public.log",
		"table \"public.log\" {\n  identity = \"full_row\"\n  method   = \"external\"\n}":  "PRE004 public.log",
	} {
		_, findings := resolve(t, conn, blocks)
		if got := codes(findings, engine.SeverityError); !slices.Contains(got, want) {
			t.Errorf("%s: %v, want %s", blocks, got, want)
		}
	}
	// A method for all covers the tables with a key; the others are streamed.
	s, findings = resolve(t, conn, "copy { method = \"pg_dump\" }\ntable \"public.log\" { identity = \"append_only\" }")
	if s.table(t, "k").Method != PgDump || s.table(t, "log").Method != Stream || codes(findings, engine.SeverityError) != nil {
		t.Errorf("methods: k %s, log %s, %v", s.table(t, "k").Method, s.table(t, "log").Method, codes(findings, engine.SeverityError))
	}
	run(t, admin, "ALTER TABLE log ALTER v SET STORAGE PLAIN", "INSERT INTO log SELECT repeat('x', 7000) FROM generate_series(1, 9000)")
	_, findings = resolve(t, conn, "")
	if diff := cmp.Diff([]string{"PRE006 public.log"}, codes(findings, engine.SeverityError)); diff != "" {
		t.Error(diff)
	}
	for _, f := range findings {
		if f.Code == CodeKeyless && (!strings.Contains(f.Fix, "at_freeze") || !strings.Contains(f.Fix, "append_only") || !strings.Contains(f.Fix, "full_row")) {
			t.Errorf("fix %q", f.Fix)
		}
	}
	name := ""
	if err := admin.QueryRow(context.Background(), "SELECT quote_ident(current_database())").Scan(&name); err != nil {
		t.Fatal(err)
	}
	run(t, admin, "ALTER TABLE log ADD id serial PRIMARY KEY", "ALTER DATABASE "+name+" SET temp_file_limit = '20MB'")
	s, _ = resolve(t, conn, "")
	if s.table(t, "log").Capture != Row || s.table(t, "k").Capture != Statement {
		t.Errorf("temp_file_limit: %+v", s.table(t, "log"))
	}
}

// TestSizesDoNotWaitForDDL: a table held by DDL does not hold up the plan.
func TestSizesDoNotWaitForDDL(t *testing.T) {
	conn, admin := source(t, 15, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 10000)", "VACUUM t")
	run(t, admin, "BEGIN", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
	s, _ := resolve(t, conn, "")
	if got := s.table(t, "t"); got.Bytes < 40*8192 || got.IndexBytes < 8192 {
		t.Errorf("estimates: %+v", got)
	}
	run(t, admin, "ROLLBACK")
}

func TestD4R8SubscribedTablesGetRowTriggers(t *testing.T) {
	conn, admin := source(t, 15, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE u (id int PRIMARY KEY)",
		"CREATE SUBSCRIPTION scope_test CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false, slot_name = NONE)",
		"INSERT INTO pg_subscription_rel SELECT oid, 'public.t'::regclass, 'r', NULL FROM pg_subscription WHERE subname = 'scope_test'")
	t.Cleanup(func() { run(t, admin, "DROP SUBSCRIPTION scope_test") })
	s, _ := resolve(t, conn, "")
	if s.table(t, "t").Capture != Row || s.table(t, "u").Capture != Statement {
		t.Errorf("t %s, u %s", s.table(t, "t").Capture, s.table(t, "u").Capture)
	}
	if len(s.NotCarried) != 1 || !strings.Contains(s.NotCarried[0], "scope_test") {
		t.Errorf("not carried: %q", s.NotCarried)
	}
}

func TestTenThousandTables(t *testing.T) {
	tables := 300
	if os.Getenv("PGRUNBOOK_SOAK") != "" {
		tables = 10_000
	}
	conn, admin := source(t, 15)
	for i := 0; i < tables; i += 100 {
		run(t, admin, fmt.Sprintf(`DO $$ BEGIN FOR i IN %d..%d LOOP
  EXECUTE format('CREATE TABLE t%%s (id int PRIMARY KEY, a text, b numeric(10,2), c timestamptz, d jsonb)', i); END LOOP; END $$`, i, min(i+99, tables-1)))
	}
	start := time.Now()
	s, findings := resolve(t, conn, `tables { include = ["public.*"] }
table "public.t1*" { chunk = "1MiB" }`)
	t.Logf("%d tables in %s", len(s.Tables), time.Since(start).Round(time.Millisecond))
	if len(s.Tables) != tables || len(findings) != 0 || len(Shapes(s)) != tables {
		t.Errorf("%d tables, %d findings", len(s.Tables), len(findings))
	}
}
