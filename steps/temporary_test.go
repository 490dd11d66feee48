package steps

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
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
