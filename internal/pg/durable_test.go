package pg

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestDurable: a COMMIT whose wait for a synchronous standby was cancelled is told by what comes right after it; and a
// session that was told so, and asked nobody, makes durable what it has seen with the COMMIT that waits for all before it.
func TestDurable(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor})
	url := testpg.NewDB(t, c)
	s := newServer(t, Config{URL: url})
	look, told, later := connect(t, s, Use{}), connect(t, s, Use{}), connect(t, s, Use{})
	run(t, look, "CREATE TABLE public.t (who text)")
	back := testpg.LoseStandbyT(t, c)
	commitAlone := func(conn *pgx.Conn, who string) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := conn.Exec(testContext(t), "INSERT INTO public.t VALUES ($1)", who)
			done <- err
		}()
		testpg.CancelStandbyT(t, url, "query LIKE 'INSERT INTO public.t%'", done)
		if err := <-done; err != nil {
			t.Fatalf("a COMMIT that stands alone has no error of its own: %v", err)
		}
	}
	if err := Durable(testContext(t), told); err != nil {
		t.Errorf("before any COMMIT: %v", err)
	}
	commitAlone(told, "told")
	if err := Durable(testContext(t), told); !errors.Is(err, ErrAlone) || !told.IsClosed() {
		t.Errorf("after a COMMIT that stands alone: %v", err)
	}
	commitAlone(later, "asked later")
	waited := make(chan error, 1)
	go func() { waited <- MakeDurable(testContext(t), later) }()
	testpg.AwaitStandbyT(t, url, "query LIKE '%pg_logical_emit_message%'", waited)
	back()
	if err := <-waited; err != nil {
		t.Errorf("with the standby there: %v", err)
	}
	if err := Durable(testContext(t), later); err != nil {
		t.Errorf("once all is durable: %v", err)
	}
	if got := show(t, look, "SELECT string_agg(who, ', ' ORDER BY who) FROM public.t"); got != "asked later, told" {
		t.Errorf("committed are %q", got)
	}
}

// TestMakeDurableThatIsCancelled: where its own wait is cancelled, nothing is known to be durable.
func TestMakeDurableThatIsCancelled(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor})
	url := testpg.NewDB(t, c)
	conn := connect(t, newServer(t, Config{URL: url}), Use{})
	testpg.LoseStandbyT(t, c)
	waited := make(chan error, 1)
	go func() { waited <- MakeDurable(testContext(t), conn) }()
	testpg.CancelStandbyT(t, url, "query LIKE '%pg_logical_emit_message%'", waited)
	if err := <-waited; !errors.Is(err, ErrAlone) {
		t.Errorf("the wait was cancelled: %v", err)
	}
}
