package pg

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// pipeFixture is two sessions of one database and an empty table to write to.
func pipeFixture(t *testing.T) (from, to *pgx.Conn) {
	t.Helper()
	s := newServer(t, Config{URL: testpg.NewDB(t, testpg.Shared(t, 15))})
	from, to = connect(t, s, Use{}), connect(t, s, Use{})
	run(t, to, "CREATE TABLE public.got (id int, v text)")
	return from, to
}

const pipeInto = "COPY public.got (id, v) FROM STDIN (FORMAT binary)"

func pipeOut(query string) string { return "COPY (" + query + ") TO STDOUT (FORMAT binary)" }

// A row goes through in pieces: what a table's largest row is has no say in the runner's memory.
func TestPipeHoldsNoRowAsAWhole(t *testing.T) {
	from, to := pipeFixture(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const large = 48 << 20
	got, err := Pipe(testContext(t), from, to, pipeOut(`SELECT i, CASE i WHEN 7 THEN repeat('x', 50331648) ELSE repeat('y', i % 50) END FROM generate_series(1, 20000) i`), pipeInto, nil)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if got.Rows != 20000 || got.Bytes < large {
		t.Errorf("piped %+v", got)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > large/4 {
		t.Errorf("a row of %d bytes took %d bytes of memory", large, took)
	}
	if sums := show(t, to, "SELECT count(*) || ' ' || max(length(v)) || ' ' || sum(length(v)) FROM public.got"); sums != "20000 50331648 50821641" {
		t.Errorf("the rows arrived as %s", sums)
	}
}

func TestPipeThatFails(t *testing.T) {
	from, to := pipeFixture(t)
	run(t, to, "CREATE FUNCTION public.say(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'row %', i; PERFORM set_config('application_name', 'row ' || i, false); RETURN i; END $$")

	// An error of the server in mid-stream leaves the session as it is.
	_, err := Pipe(testContext(t), from, to, pipeOut("SELECT i, repeat('x', 100 / (5000 - i)) FROM generate_series(1, 9000) i"), pipeInto, nil)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "22012" {
		t.Fatalf("%v, want the division by zero", err)
	}
	// Notices and parameters in mid-stream are not rows, and are not left over for the next statement.
	got, err := Pipe(testContext(t), from, to, pipeOut("SELECT public.say(i), repeat('x', i) FROM generate_series(1, 100) i"), pipeInto, nil)
	if err != nil || got.Rows != 100 {
		t.Fatalf("%+v, %v after a failure, want 100 rows", got, err)
	}
	if n := show(t, from, "SELECT 'still ' || current_setting('application_name')"); n != "still row 100" {
		t.Errorf("the session says %s", n)
	}

	// The end of the context ends a COPY that waits, and the session with it.
	ctx, cancel := context.WithCancelCause(testContext(t))
	enough := errors.New("enough")
	_, err = Pipe(ctx, from, to, pipeOut("SELECT i, repeat('x', 100000) || pg_sleep(CASE i WHEN 50 THEN 60 ELSE 0 END) FROM generate_series(1, 50) i"), pipeInto,
		func(context.Context, int) error { cancel(enough); return nil })
	if !errors.Is(err, enough) || !from.IsClosed() {
		t.Errorf("%v and a source session that is closed: %t, want the cause and true", err, from.IsClosed())
	}

	// A receiver that fails stops the reader.
	from, to = pipeFixture(t)
	_, err = Pipe(testContext(t), from, to, pipeOut("SELECT i, repeat('x', 1000) FROM generate_series(1, 2000000) i"), "COPY public.missing FROM STDIN (FORMAT binary)", nil)
	if err == nil || !strings.Contains(err.Error(), "missing") || !from.IsClosed() {
		t.Errorf("%v and a source session that is closed: %t, want the receiver's error and true", err, from.IsClosed())
	}
	left := "?"
	for range 300 { // the cancelling and the closing are asynchronous
		left = show(t, to, "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND datname = current_database() AND query LIKE 'COPY (%'")
		if left == "0" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s COPY statements are left", left)
}
