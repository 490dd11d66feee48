package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

var testRun = scope.Run{ID: "r1", Mark: "m-4711", Epoch: 1, GateKey: 4711, Message: "moved", ClosedError: "25006"}

// db is one database with our session and an application's.
type db struct {
	t    *testing.T
	ctx  context.Context
	url  string
	srv  *pg.Server
	ours *pgx.Conn // superuser with pinned settings
	app  *pgx.Conn // role app, as a driver connects
}

func newDB(t *testing.T, major int, setup string) *db {
	t.Helper()
	return newDBOn(t, testpg.Shared(t, major), setup)
}

func newDBOn(t *testing.T, c *testpg.Cluster, setup string) *db {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	d := &db{t: t, ctx: ctx, url: testpg.NewDB(t, c)}
	var err error
	if d.srv, err = pg.New(pg.Config{Side: "source", URL: d.url, RunID: testRun.ID, Mark: testRun.Mark}); err != nil {
		t.Fatal(err)
	}
	if d.ours, err = d.srv.Connect(ctx, pg.Use{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.ours.Close(context.Background()) })
	su := d.connect(d.url)
	d.run(su, `DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;`)
	d.run(su, setup)
	d.run(su, `GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app; GRANT CREATE, USAGE ON SCHEMA public TO app; GRANT TEMPORARY ON DATABASE `+pgx.Identifier{d.one("SELECT current_database()")}.Sanitize()+` TO app`)
	d.app = d.connect(d.appURL())
	return d
}

func (d *db) appURL() string { return strings.Replace(d.url, "postgres@", "app@", 1) }

func (d *db) connect(url string) *pgx.Conn {
	d.t.Helper()
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		d.t.Fatal(err)
	}
	conf.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(d.ctx, conf)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// try runs a script as one simple query would: statement by statement in one message.
func (d *db) try(conn *pgx.Conn, sql string) error {
	_, err := conn.PgConn().Exec(d.ctx, sql).ReadAll()
	return err
}

func (d *db) run(conn *pgx.Conn, sql string) {
	d.t.Helper()
	if err := d.try(conn, sql); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func (d *db) one(sql string, args ...any) string {
	d.t.Helper()
	var s *string
	if err := d.ours.QueryRow(d.ctx, sql, args...).Scan(&s); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	if s == nil {
		return ""
	}
	return *s
}

func (d *db) list(sql string, args ...any) []string {
	d.t.Helper()
	rows, err := d.ours.Query(d.ctx, sql, args...)
	if err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return list
}

// table builds what the scope's resolver would: columns and primary key from the catalog.
func (d *db) table(id int32, name string, c scope.Capture, identity scope.Identity) scope.Table {
	d.t.Helper()
	t := scope.Table{ID: id, Name: scope.Name{Schema: "public", Name: name}, Kind: scope.Plain, Data: scope.Live, Identity: identity, Capture: c}
	if d.one("SELECT relkind::text FROM pg_class WHERE oid = $1::text::regclass", "public."+name) == "p" {
		t.Kind = scope.Partitioned
	}
	rows, err := d.ours.Query(d.ctx, `SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull,
  CASE WHEN a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN 'pg_catalog.int8' ELSE quote_ident(n.nspname) || '.' || quote_ident(y.typname) END,
  CASE WHEN n.nspname = 'public' THEN 'OPERATOR(public.=)' ELSE 'OPERATOR(pg_catalog.=)' END,
  coalesce((SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation), '')
 FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid JOIN pg_namespace n ON n.oid = y.typnamespace
WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, "public."+name)
	if err != nil {
		d.t.Fatal(err)
	}
	keys := map[string]scope.KeyColumn{}
	var col scope.Column
	var k scope.KeyColumn
	if _, err := pgx.ForEachRow(rows, []any{&col.Num, &col.Name, &col.Type, &col.TypeOID, &col.NotNull, &k.DeltaType, &k.Operator, &k.Collation}, func() error {
		t.Columns = append(t.Columns, col)
		k.Name = col.Name
		keys[col.Name] = k
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	if identity != scope.ByKey {
		return t
	}
	t.Key = &scope.Key{Primary: true}
	for _, c := range d.list(`SELECT a.attname::text FROM pg_index x CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k (num, n)
  JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.num WHERE x.indrelid = $1::text::regclass AND x.indisprimary ORDER BY k.n`, "public."+name) {
		t.Key.Columns = append(t.Key.Columns, keys[c])
		t.Key.Shape += fmt.Sprintf("%08x", crc(keys[c].DeltaType+keys[c].Collation))
	}
	return t
}

func crc(s string) uint32 {
	h := uint32(2166136261)
	for _, b := range []byte(s) {
		h = (h ^ uint32(b)) * 16777619
	}
	return h
}

// install captures tables as a runner does.
func (d *db) install(tables ...scope.Table) {
	d.t.Helper()
	if err := Prepare(d.ctx, d.ours, testRun); err != nil {
		d.t.Fatal(err)
	}
	for _, t := range tables {
		if err := InstallOn(d.ctx, d.ours, testRun, t, nil); err != nil {
			d.t.Fatal(err)
		}
	}
}

// content maps each key (as the delta writes it) to its row.
func (d *db) content(t scope.Table) map[string]string {
	d.t.Helper()
	exprs := make([]string, len(t.Key.Columns))
	for i, c := range t.Key.Columns {
		exprs[i] = "(" + keyExpr(c, "t") + ")::text"
	}
	m := map[string]string{}
	for _, line := range d.list(fmt.Sprintf("SELECT concat_ws('|', %s) || chr(1) || t::text FROM %s t", strings.Join(exprs, ", "), pg.Name(t.Schema, t.Name.Name))) {
		k, v, _ := strings.Cut(line, "\x01")
		m[norm(k)] = v
	}
	return m
}

// norm makes keys that the keys' own operators call equal the same: 5.0 and 5.000, K1 and k1.
func norm(key string) string {
	parts := strings.Split(strings.ToLower(key), "|")
	for i, p := range parts {
		if f, err := strconv.ParseFloat(p, 64); err == nil {
			parts[i] = strconv.FormatFloat(f, 'g', -1, 64)
		}
	}
	return strings.Join(parts, "|")
}

// logged gives the keys in a table's delta and the members that were truncated.
func (d *db) logged(t scope.Table) (keys, marks []string) {
	d.t.Helper()
	cols := make([]string, len(t.Key.Columns))
	for i := range cols {
		cols[i] = fmt.Sprintf("k%d::text", i+1)
	}
	keys = d.list(fmt.Sprintf("SELECT DISTINCT concat_ws('|', %s) FROM %s WHERE rel = $1 ORDER BY 1", strings.Join(cols, ", "), DeltaName(t.Key.Shape)), t.ID)
	for i := range keys {
		keys[i] = norm(keys[i])
	}
	marks = d.list("SELECT DISTINCT member FROM pgrunbook.truncated WHERE rel = $1 ORDER BY 1", t.ID)
	return keys, marks
}

func (d *db) forget(tables ...scope.Table) {
	d.t.Helper()
	for _, t := range tables {
		d.run(d.ours, "DELETE FROM "+DeltaName(t.Key.Shape)+"; DELETE FROM pgrunbook.truncated")
	}
}

// missed lists changed keys that the capture does not know: the oracle is the rows themselves.
func missed(before, after map[string]string, keys, marks []string) []string {
	var list []string
	for k, v := range after {
		if before[k] != v && !slices.Contains(keys, k) {
			list = append(list, "written "+k)
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok && !slices.Contains(keys, k) && len(marks) == 0 {
			list = append(list, "deleted "+k)
		}
	}
	slices.Sort(list)
	return list
}

func pgCode(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
