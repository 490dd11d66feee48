package cutover_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// modes are a trigger and a constraint that the target gets only in the transaction that opens it. The
// constraint needs a lock that any reader of its table is in the way of.
const modes = `
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := coalesce(NEW.note, ''none''); RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON app.part FOR EACH ROW EXECUTE PROCEDURE app.touch();
ALTER TABLE app.part ENABLE ALWAYS TRIGGER touch;
ALTER TABLE app.part ADD CONSTRAINT other CHECK (note <> 'part') NOT VALID;
`

// TestReaderAtTheOpening: a report reads a table whose constraint is made at the opening of the target, and
// the runner dies between the COMMITs, when neither side takes writes. Nobody waits for the report's end:
// the guardian names it, ends it, and opens the target.
func TestReaderAtTheOpening(t *testing.T) {
	t.Parallel()
	r := newIdleRig(t)
	r.sql(r.source, modes)
	r.write(plain)
	r.begin(r.source, r.target)
	r.want(0, "apply", "-y", "--until", "arm")

	gone := filepath.Join(r.dir, "between")
	p := r.start("freeze.between@1:wait="+gone, "apply", "-y")
	r.eventually("arrived between the COMMITs", func() bool { _, err := os.Stat(gone + ".here"); return err == nil })
	report := r.connect(r.target)
	_, err := report.Exec(context.Background(), "SET application_name = 'a report'; BEGIN")
	r.must(err)
	read := make(chan error, 1)
	go func() {
		_, err := report.Exec(context.Background(), "SELECT count(*) FROM app.part")
		read <- err
	}()
	pid := report.PgConn().PID()
	r.eventually("the report waits for the opening", func() bool {
		return r.ask(r.target, fmt.Sprintf("SELECT count(*)::text FROM pg_locks WHERE pid = %d AND NOT granted", pid)) == "1"
	})
	p.signal(syscall.SIGKILL)
	// The hold has gone with the runner: it reads, and its transaction goes on, unless it is ended already.
	if err := <-read; err != nil {
		t.Logf("the report had no time to read: %v", err)
	}
	r.writing(onTarget)
	if o := p.end(); o.signal != syscall.SIGKILL || p.passed("freeze.resolved") == 0 {
		t.Errorf("the guardian opened nothing, and yet somebody did: %v\n%s", o.signal, o.text)
	}
	r.says(p.said(), "guardian: ended on the target, which could not be opened while neither side takes writes", fmt.Sprintf("pid %d (", pid), "a report")
	if _, err := report.Exec(context.Background(), "COMMIT"); err == nil {
		t.Error("the report was not in the way")
	}

	r.want(0, "apply", "-y")
	const made = `SELECT (SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'touch') || (SELECT count(*)::text FROM pg_constraint WHERE conname = 'other')`
	if got := r.ask(r.target, made); got != "A1" {
		t.Errorf("trigger and constraint of the opened target are %s, want A1", got)
	}
	r.same()
	r.balance(r.target)
}
