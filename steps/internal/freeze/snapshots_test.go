package freeze

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// as gives a side's URL of a role that owns what a freeze needs there and is no superuser.
func (p *pair) as(side, suffix, sql string) (role, as string) {
	p.t.Helper()
	u, err := url.Parse(side)
	if err != nil {
		p.t.Fatal(err)
	}
	role = strings.TrimPrefix(u.Path, "/") + suffix
	p.exec(side, "CREATE ROLE "+role+" LOGIN; "+strings.ReplaceAll(sql, "ROLE", role))
	p.t.Cleanup(func() {
		p.exec(side, "REASSIGN OWNED BY "+role+" TO CURRENT_USER; DROP OWNED BY "+role+"; DROP ROLE "+role)
	})
	u.User = url.User(role)
	return role, u.String()
}

// What our role may not end is named, before the hold and inside it, and ends the attempt: the flip
// must not happen beside it, nor fail for good.
func TestR21OldSnapshotThatMayNotBeEnded(t *testing.T) {
	p := newPair(t)
	mover, as := p.as(p.target, "_mover", "ALTER SCHEMA pgrunbook OWNER TO ROLE; ALTER SEQUENCE pgrunbook.gate_flag OWNER TO ROLE")
	_, app := p.as(p.target, "_app", "GRANT SELECT, INSERT ON public.account TO ROLE")
	p.freeze.To = server(t, "target", as)
	read := func(url string) *pgx.Conn {
		conn := p.connect(url)
		if _, err := conn.PgConn().Exec(context.Background(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM public.account").ReadAll(); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	n := 0
	wantNamed := func(what string, conn *pgx.Conn) {
		t.Helper()
		n++
		_, err := p.freeze.Attempt(context.Background(), n)
		var blocked *BlockedError
		if !errors.Is(err, ErrNotNow) || !errors.As(err, &blocked) || len(blocked.Blockers) != 1 || blocked.Blockers[0].PID != int32(conn.PgConn().PID()) {
			t.Fatalf("%s: got %v", what, err)
		}
		p.wantSide("source")
	}
	old := read(app)
	wantNamed("without any right", old)
	p.exec(p.target, "GRANT pg_read_all_stats TO "+mover)
	wantNamed("without the right to end it", old)
	p.exec(p.target, "GRANT pg_signal_backend TO "+mover)
	var late *pgx.Conn
	p.freeze.AtOpen = func(context.Context, ExecFunc) error {
		late = read(p.target) // a superuser's, after the look before the hold
		return nil
	}
	n++
	_, err := p.freeze.Attempt(context.Background(), n)
	if blocked := (*BlockedError)(nil); late == nil || !errors.Is(err, ErrNotNow) || !errors.As(err, &blocked) || blocked.Blockers[0].PID != int32(late.PgConn().PID()) {
		t.Fatalf("a superuser's: got %v", err)
	}
	p.wantSide("source")
	p.freeze.AtOpen = func(context.Context, ExecFunc) error { return nil }
	if _, err := late.Exec(context.Background(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	old = read(app) // the attempt ended the first one
	n++
	cert, err := p.freeze.Attempt(context.Background(), n)
	if err != nil || len(cert.Ended) != 1 {
		t.Fatalf("with both rights: %v, %v", cert, err)
	}
	if _, err := old.Exec(context.Background(), "INSERT INTO public.account VALUES (99, 0)"); err == nil {
		t.Error("the old snapshot wrote")
	}
}
