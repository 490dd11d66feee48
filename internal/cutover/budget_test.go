package cutover_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

const budget = `
cutover {
  max_write_block = "%s"
  attempts        = 1
  retry_every     = "100ms"
  sequence_margin = 100

  switch {
    step "exec" "repoint" {
      command = ["/bin/sh", "-c", "echo there >> $SAYS; test -e $SLOW && sleep 30; exit 0"]
      undo    = ["/bin/sh", "-c", "echo back >> $SAYS"]
      env     = { SAYS = "%s/says", SLOW = "%[2]s/slow" }
      timeout = "%[3]s"
    }
    step "exec" "second" {
      command = ["/bin/sh", "-c", "echo second >> $SAYS"]
      undo    = ["/bin/sh", "-c", "echo second back >> $SAYS"]
      env     = { SAYS = "%[2]s/says" }
      timeout = "1s"
    }
  }
}
rollback { keep_for = "1h" }
`

func (r *rig) read(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	return string(text)
}

// TestOverBudget: a switch step that hangs is undone with the freeze, the application writes on,
// and the next attempt just works; so is one that runs into its own timeout.
func TestOverBudget(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.write(fmt.Sprintf(budget, "4s", r.dir, "3s"))
	r.want(0, "apply", "-y", "--until", "arm")
	r.must(os.WriteFile(filepath.Join(r.dir, "slow"), nil, 0o600))
	r.says(r.want(16, "apply", "-y"), "writes go on at the source", "repoint")
	if got := r.read("says"); got != "there\nback\n" {
		t.Errorf("the switch step and its undo said %q", got)
	}
	r.writing(onSource)
	r.refused(r.target, "25006")
	r.says(r.want(0, "status"), "The source takes writes", "no cutover this time")

	r.must(os.Remove(filepath.Join(r.dir, "slow")))
	r.must(os.WriteFile(filepath.Join(r.dir, "says"), nil, 0o600))
	r.write(fmt.Sprintf(budget, "2500ms", r.dir, "1s")) // the budget may be tuned in mid-run
	p := r.start("freeze.switched@1:sleep=3s", "apply", "-y")
	if o := p.end(); o.code != 16 || p.passed("freeze.switched") != 1 {
		t.Errorf("over its budget it ended with %d, want 16:\n%s", o.code, o.text)
	}
	r.says(p.said(), "the write block reached its budget of 2.5s")
	if got := r.read("says"); got != "there\nback\n" {
		t.Errorf("the switch step and its undo said %q", got)
	}
	r.writing(onSource)
	r.refused(r.target, "25006")

	// Killed when it has let go of the source and undone nothing yet.
	r.must(os.WriteFile(filepath.Join(r.dir, "says"), nil, 0o600))
	p = r.start("freeze.switched@1:sleep=3s;freeze.letgo:kill", "apply", "-y")
	if o := p.end(); o.signal != syscall.SIGKILL || p.passed("freeze.letgo") != 1 {
		t.Errorf("it did not die before its undo: %d\n%s", o.code, o.text)
	}
	r.writing(onSource)
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.same()
	r.want(0, "rollback", "-y")
	if got := r.read("says"); got != "there\nback\nthere\nsecond\nsecond back\nback\n" {
		t.Errorf("there and back the switch steps said %q", got)
	}
	r.writing(onSource)
	r.balance(r.source)
}

// predictedOver: with a budget that no pass can keep there is no freeze at all.
func (r *rig) predictedOver() {
	r.t.Helper()
	r.write("cutover {\n  max_write_block = \"40ms\"\n  attempts = 2\n  retry_every = \"100ms\"\n}\n")
	p := r.start("", "apply", "-y")
	o := p.end()
	if o.code != 16 {
		r.t.Errorf("it ended with %d, want 16:\n%s", o.code, o.text)
	}
	r.says(o.text, "predicted write block of", "is over max_write_block 40ms", "attempt 2")
	if n := p.passed("freeze.held"); n != 0 {
		r.t.Errorf("writes were held %d times", n)
	}
	r.writing(onSource)
}

// TestF31Blockers: what stands in a freeze's way is named, nobody waits for it, and when it has gone
// the same command works. So it is with a prediction that is over the budget.
func TestF31Blockers(t *testing.T) {
	t.Parallel()
	const enough = "cutover {\n  max_write_block = \"5s\"\n  attempts = 2\n  retry_every = \"200ms\"\n}\n"
	r := newRig(t, enough)
	r.want(0, "apply", "-y", "--until", "arm")
	r.predictedOver()
	r.write(enough)

	idle := r.connect(r.source)
	exec := func(sql string) {
		t.Helper()
		_, err := idle.Exec(context.Background(), sql)
		r.must(err)
	}
	exec("SET application_name = 'forgotten window'")
	for _, c := range []struct{ begin, end, names string }{
		{"BEGIN; UPDATE app.item SET net = 5 WHERE id = 5", "COMMIT", `a transaction that writes (pid %d, user %s, application "forgotten window")`},
		{"BEGIN; UPDATE app.item SET net = 6 WHERE id = 6; PREPARE TRANSACTION 'left over'", "COMMIT PREPARED 'left over'", "the prepared transaction 'left over'"},
		{"BEGIN; SET LOCAL session_replication_role = replica; ALTER TABLE app.item DISABLE TRIGGER USER", "ROLLBACK", "ShareRowExclusiveLock on app.item (pid"},
		{"BEGIN; SET LOCAL session_replication_role = replica; CREATE TABLE app.new AS SELECT 1 AS one", "ROLLBACK", "a transaction that created a table"},
	} {
		exec(c.begin)
		r.ask(r.source, "SELECT pg_sleep(1.1)::text") // older than what a freeze waits for
		p := r.start("", "apply", "-y")
		o := p.end()
		if o.code != 16 {
			t.Errorf("with %q in the way it ended with %d, want 16:\n%s", c.begin, o.code, o.text)
		}
		names := c.names
		if names == `a transaction that writes (pid %d, user %s, application "forgotten window")` {
			names = fmt.Sprintf(names, idle.PgConn().PID(), idle.Config().User)
		}
		r.says(o.text, names)
		r.writing(onSource)
		exec(c.end)
	}
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.same()
	r.balance(r.target)
}
