package steps

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// standStill keeps every statement on the target that reads a whole table, with the locks that it
// has, until the key with its name is free: as if it took hours. What only changes the catalog goes on.
const standStill = `
CREATE FUNCTION public.stand_still() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_query() ~ 'USING INDEX|NOT VALID' THEN RETURN; END IF;
  WHILE NOT pg_try_advisory_xact_lock_shared(CASE WHEN current_query() ~ 'FOREIGN KEY|VALIDATE' THEN 2 ELSE 1 END) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$;
CREATE EVENT TRIGGER stand_still ON ddl_command_end WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE') EXECUTE FUNCTION public.stand_still();
ALTER EVENT TRIGGER stand_still ENABLE ALWAYS`

// S6: an index of a large table is built and a foreign key is proved without keeping passes from their
// work, and both stand on what exact passes have left. Built in the plain way, either holds a lock for
// hours that no pass gets through.
func TestS6PassesGoOnWhileConstraintsAreMade(t *testing.T) {
	every, patience := followEvery, followPatience
	followEvery, followPatience = 50*time.Millisecond, 2*time.Second
	defer func() { followEvery, followPatience = every, patience }()
	r := carried(t, "CREATE UNIQUE INDEX by_name ON shop.customer (name)")
	for i := range r.env.Scope.Tables {
		r.env.Scope.Tables[i].Bytes = smallTable + 1
	}
	r.exec(r.target, standStill)
	holder, err := testpg.Connect(t.Context(), r.target)
	r.must(err)
	defer func() { _ = holder.Close(t.Context()) }()
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock(1), pg_advisory_lock(2)", pgx.QueryExecModeExec)
	r.must(err)
	done := make(chan error, 1)
	go func() { done <- r.walk(t.Context(), newConstraints(r.env)) }()
	for key, made := range []string{"by_name", "invoice_customer_fkey"} {
		still := "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%" + made + "%'"
		r.until(done, still, "1")
		id := 100 + key
		if key == 0 { // a pass that fails for good is not the last one
			r.exec(r.target, "ALTER TABLE pgrunbook.watermark RENAME TO elsewhere /* NOT VALID: does not stand still */")
		}
		r.exec(r.source, fmt.Sprintf("BEGIN; INSERT INTO shop.customer VALUES (%d, 'late %[1]d'); INSERT INTO shop.invoice (customer, total) VALUES (%[1]d, 1); COMMIT", id))
		if key == 0 {
			for deadline := time.Now().Add(time.Minute); !r.heard("and is tried again") && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
			if !r.heard("and is tried again") {
				t.Error("no pass failed: this proves nothing")
			}
			r.exec(r.target, "ALTER TABLE pgrunbook.elsewhere RENAME TO watermark /* NOT VALID */")
		}
		r.until(done, fmt.Sprintf("SELECT count(*)::text FROM shop.invoice i JOIN shop.customer c ON c.id = i.customer WHERE c.id = %d", id), "1")
		r.until(done, still, "1") // it is not over yet
		_, err = holder.Exec(t.Context(), fmt.Sprintf("SELECT pg_advisory_unlock(%d)", key+1))
		r.must(err)
	}
	r.must(<-done)
	r.want(r.target, "SELECT string_agg(conname || ' ' || convalidated, '') FROM pg_constraint WHERE contype = 'f' AND connamespace = 'shop'::regnamespace", "invoice_customer_fkey true")
	r.want(r.target, "SELECT (indisvalid AND indisunique)::text FROM pg_index WHERE indexrelid = 'shop.by_name'::regclass", "true")
	r.same("shop.customer", "shop.invoice")
}

// until waits for what a query gives on the target; a step that ends before is a failure.
func (r *rig) until(done chan error, sql, want string) {
	r.t.Helper()
	got := ""
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if got = query(r.t, r.target, sql); got == want {
			return
		}
		select {
		case err := <-done:
			r.t.Fatalf("the step ended, %v, before this gave %q: %s", err, want, strings.TrimSpace(sql))
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("for a minute this gave %q, not %q: %s", got, want, sql)
		}
	}
}
