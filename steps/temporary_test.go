package steps

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What needs a session's temporary objects is dropped with them: it is left out and named, once. A table in scope stops the
// run, named with what it needs, until it needs that no more.
func TestF46DefinitionsOfASession(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	conn, err := pgx.Connect(t.Context(), r.source)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	do := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		r.must(err)
	}
	do(`CREATE TEMP TABLE mine (a int); CREATE FUNCTION shop.of_mine(mine) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE DOMAIN shop.many AS mine[];
		CREATE TABLE shop.after (id int PRIMARY KEY); INSERT INTO shop.after VALUES (1)`)
	said := map[string]int{}
	r.onEvent = func(e engine.Event) { said[e.Message]++ }
	r.must(r.catchUp())
	r.must(r.catchUp())
	told := 0
	for text, times := range said {
		if strings.Contains(text, "needs something temporary") && (strings.Contains(text, "shop.of_mine") || strings.Contains(text, "shop.many")) {
			told += times
		}
	}
	if told != 2 {
		t.Errorf("told %d times of two objects: %v", told, said)
	}
	r.same("shop.after")
	r.want(r.target, "SELECT concat(to_regtype('shop.many'), to_regproc('shop.of_mine'))", "")
	do("ALTER TABLE shop.customer ADD COLUMN m mine")
	err = r.catchUp()
	if err == nil || !strings.Contains(err.Error(), "shop.customer") || !strings.Contains(err.Error(), ".mine") || !strings.Contains(engine.HintOf(err), "end that session") {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.must(conn.Close(t.Context()))
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late) && query(t, r.source, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'shop.customer'::regclass AND attname = 'm'") != "0"; {
		time.Sleep(20 * time.Millisecond)
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'after' WHERE id = 1")
	r.must(r.catchUp())
	r.sameTables(t)
}

// TestF41NewTablesChangeWhileTheyJoin: what becomes of new tables between the look at them and their dump ends nothing, and
// none is followed that no journal knows.
func TestF41NewTablesChangeWhileTheyJoin(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	conn, err := pgx.Connect(t.Context(), r.source)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	for n, c := range []struct{ made, meanwhile, want string }{
		{"CREATE TABLE shop.a_link (id text PRIMARY KEY); INSERT INTO shop.a_link VALUES ('a'); CREATE TABLE shop.b_brief (id text PRIMARY KEY)", "DROP TABLE shop.b_brief", "shop.a_link"},
		{"CREATE TABLE shop.c_late (id int PRIMARY KEY); INSERT INTO shop.c_late VALUES (1)", "ALTER TABLE shop.c_late ADD COLUMN more int DEFAULT 3", "shop.c_late"},
	} {
		// What is temporary is told between the look and the dump.
		_, err := conn.PgConn().Exec(t.Context(), fmt.Sprintf("CREATE TEMP TABLE IF NOT EXISTS mine (a int); CREATE FUNCTION shop.of_mine_%d(mine) RETURNS int LANGUAGE sql AS 'SELECT 1'; ", n)+c.made).ReadAll()
		r.must(err)
		came := false
		r.onEvent = func(e engine.Event) {
			if !came && strings.Contains(e.Message, "needs something temporary") {
				came = true
				r.exec(r.source, c.meanwhile)
			}
		}
		r.must(r.catchUp())
		r.onEvent = nil
		if !came {
			t.Fatal("nothing happened in between")
		}
		r.env.Journal.Close(t.Context())
		r.open() // as a new process
		at := slices.IndexFunc(r.env.Scope.Tables, func(s scope.Table) bool { return s.Display() == c.want })
		if at < 0 {
			t.Fatalf("%s is in no journal", c.want)
		}
		r.want(r.source, "SELECT count(*) FROM pgrunbook.captured", strconv.Itoa(len(captured(r.env))))
		r.want(r.source, "SELECT id FROM pgrunbook.captured WHERE schema_name || '.' || table_name = '"+c.want+"'", strconv.Itoa(int(r.env.Scope.Tables[at].ID)))
		r.must(r.catchUp())
		r.same(c.want)
	}
}
