package steps

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestReverseProvesEveryRight: a role that may change one table, where the proof with a row succeeds, lacks
// rights on others; each is named before the freeze, tables without a key and sequences too, and what the
// hint says mends it.
func TestReverseProvesEveryRight(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+"CREATE SEQUENCE shop.ticket;", "")
	const role = "reverse_mover"
	admin := r.env.Source
	drop := func() {
		conn, err := pgx.Connect(context.WithoutCancel(t.Context()), r.source)
		r.must(err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, _ = conn.PgConn().Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role).ReadAll()
		_, _ = conn.PgConn().Exec(context.Background(), "DROP ROLE IF EXISTS "+role).ReadAll()
	}
	drop()
	t.Cleanup(drop)
	r.exec(r.source, "CREATE ROLE "+role+" LOGIN; GRANT USAGE ON SCHEMA shop TO "+role+"; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON shop.customer, shop.invoice TO "+role+`;
		GRANT SELECT, UPDATE, TRUNCATE ON shop.event TO `+role+"; GRANT SELECT ON shop.log TO "+role+"; GRANT SELECT ON ALL SEQUENCES IN SCHEMA shop TO "+role)
	u, err := url.Parse(r.source)
	r.must(err)
	u.User = url.User(role)
	r.env.Source, err = NewServer(engine.Source, u.String(), "")
	r.must(err)
	defer func() { r.env.Source = admin }()

	err = (&reverseStep{env: r.env}).prove(t.Context(), abortSinkFor(r), captured(r.env))
	if err == nil {
		t.Fatal("nothing is said to be lacking")
	}
	for _, part := range []string{"role " + role, "INSERT, DELETE on shop.event", "INSERT, UPDATE, DELETE, TRUNCATE on shop.log", "sequence shop.invoice_id_seq", "sequence shop.ticket"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if strings.Contains(err.Error(), "shop.customer") || strings.Contains(err.Error(), "shop.lock") {
		t.Errorf("a table that lacks nothing, or carries no rows, is named: %v", err)
	}
	fix, _, _ := strings.Cut(engine.HintOf(err), " Then run")
	r.exec(r.source, fix)
	r.must(mayWriteBack(t.Context(), r.env))
}
