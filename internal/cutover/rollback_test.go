package cutover_test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// burst writes 50,000 rows at once, and changes every table in every way that a reverse pass has to
// carry.
const burst = `
SET default_transaction_read_only = off;
INSERT INTO app.part SELECT 1 + g % 900, 100000 + g, 'burst' FROM generate_series(1, 50000) g;
INSERT INTO app.item (name, net) SELECT 'new ' || g, 1 FROM generate_series(1, 200) g;
UPDATE app.item SET name = 'renamed ' || id WHERE id % 10 = 3;
UPDATE app.part SET no = no + 500000 WHERE item % 50 = 7;
DELETE FROM app.item WHERE id BETWEEN 950 AND 1000;
UPDATE app.event SET day = day + 100 WHERE id % 40 = 1;
DELETE FROM app.event WHERE id % 40 = 2;
INSERT INTO app.jobs (text) SELECT 'late' FROM generate_series(1, 30);
DELETE FROM app.jobs WHERE text = 'job 3';
INSERT INTO app.trail (text) SELECT 'late' FROM generate_series(1, 500);
INSERT INTO app.bag SELECT 99, 'c' FROM generate_series(1, 50);
UPDATE app.bag SET b = 'twice' WHERE a = 4;
DELETE FROM app.bag WHERE ctid IN (SELECT ctid FROM app.bag WHERE a = 5 LIMIT 3);
SELECT count(nextval('app.ticket')) FROM generate_series(1, 700);
`

// TestThereAndBack: cutover, 50,000 writes on the target, rollback, cutover again, finish; the
// application never stops and loses no commit over the whole story.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.writing(onSource)
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.same()
	r.ahead(r.target, r.source)
	r.refused(r.source, "25006")

	many := burst
	if soak() {
		many = strings.Replace(burst, "generate_series(1, 50000)", "generate_series(1, 1000000)", 1)
	}
	r.sql(r.target, many)
	r.writing(onTarget)
	check := r.want(0, "rollback", "--check")
	r.says(check, "rows to carry back", "predicted: writes wait in the rollback for", "of 5s")
	r.says(r.want(0, "status"), "way back possible, after", "rate", "way back predicted: writes wait in the rollback for")
	if strings.Contains(check, " 0 rows to carry back") {
		t.Errorf("50,000 rows are waiting, and rollback --check says:\n%s", check)
	}
	r.writing(onTarget) // it only looked
	r.want(0, "rollback", "-y")
	r.writing(onSource)
	r.same()
	r.ahead(r.source, r.target)
	r.says(r.refused(r.target, "25006"), "has moved to another server", "Writes go to "+address(r.source))
	r.says(r.want(0, "status"), "The source takes writes", "old side the target:", "writes refused")
	r.sql(r.source, "INSERT INTO app.item (name, net) VALUES ('an id that nobody has', 1); INSERT INTO app.bag VALUES (7, 'again')")

	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.same()
	r.says(r.want(0, "finish", "-y", "--now"), "flip from source to target, epoch", "write block", "final pass")
	r.writing(onTarget)
	r.balance(r.target)
	r.refused(r.source, "25006")
	forgotten := r.connect(r.source)
	r.must(forgotten.Ping(t.Context()))
	r.says(r.want(0, "status"), "is finished; the source is closed", "writes refused by the gate; new sessions are read-only", "rollback not possible: the run is finished", "still connected to the source: 1 session of user postgres", "Next: nothing; this takes the source's gate off, and then the source takes writes beside the target, which nothing carries over: BEGIN READ WRITE; DROP SCHEMA pgrunbook CASCADE;")
}

// TestFollowThenBack lets reverse passes run before the rollback, and ends them with Ctrl-C.
func TestFollowThenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	// What the owner set himself, for whatever reason, is there again after the way back.
	r.sql(r.source, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = off', current_database()); END $$")
	const own = "SELECT coalesce((SELECT setconfig::text FROM pg_db_role_setting WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())), '')"
	r.want(0, "apply", "-y")
	if got := r.ask(r.source, own); got != "{default_transaction_read_only=on}" {
		t.Errorf("the closed source has the settings %s", got)
	}
	r.sql(r.target, burst)
	r.writing(onTarget)

	follow := r.start("", "follow")
	r.eventually("the burst's rows arrive at the source", func() bool {
		return r.ask(r.source, "SELECT count(*)::text FROM app.part WHERE note = 'burst'") == r.ask(r.target, "SELECT count(*)::text FROM app.part WHERE note = 'burst'")
	})
	r.writing(onTarget) // the source stays closed
	r.refused(r.source, "25006")
	follow.signal(syscall.SIGINT)
	if o := follow.end(); o.code != 130 {
		t.Errorf("follow ended with %d after SIGINT, want 130\n%s", o.code, o.text)
	} else {
		r.says(o.text, "stopped following", "pgrunbook rollback")
	}
	r.want(0, "rollback", "-y")
	r.writing(onSource)
	if got := r.ask(r.source, own); got != "{default_transaction_read_only=off}" {
		t.Errorf("after the way back the source has the settings %s", got)
	}
	r.same()
	r.balance(r.source)
}

// TestNoWayBack: a change of a table on the target ends the way back, and both commands say so.
func TestNoWayBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.says(r.want(1, "rollback", "--check"), "no run on this target")
	r.want(0, "apply", "-y", "--until", "schema")
	r.says(r.want(1, "rollback", "--check"), "there was no cutover yet", "pgrunbook abort")
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.says(r.want(0, "status"), "way back possible")
	r.says(r.alone("status"), "way back possible as far as the target knows", "PGRUNBOOK_SOURCE_URL", "old side the source: not asked how many writes it refused")

	past := func(sql string) { // the source's gate
		t.Helper()
		r.sql(r.source, "BEGIN READ WRITE; SELECT set_config('pgrunbook.mark', mark, true) FROM pgrunbook.side; "+sql+"; COMMIT")
	}
	past("UPDATE app.part SET note = 'unseen' WHERE ctid = (SELECT ctid FROM app.part LIMIT 1)")
	r.says(r.want(12, "verify"), "app.part differs")
	r.says(r.want(12, "rollback", "-y"), `different in "app"."part"`, "Next: pgrunbook verify", "--accept-differences", "finish, to stay")
	r.says(r.want(0, "status"), "pgrunbook verify", "or pgrunbook finish, to stay")
	r.says(r.want(4, "rollback", "-y", "--accept-differences"), "--by")
	r.says(r.want(0, "rollback", "--check", "--accept-differences", "--by", "dba"), "CMP003", "dba goes back with what differs")
	r.sql(r.target, "UPDATE app.part SET note = note")
	r.want(0, "verify")

	no := func(parts ...string) {
		t.Helper()
		parts = append(parts, "the target's tables changed", `"app"."part"`)
		r.says(r.want(1, "rollback", "--check"), parts...)
		text := r.want(0, "status")
		r.says(text, append(parts, "way back not possible since 20", "at the latest", "it was possible at 20")...)
		r.says(r.alone("status"), append(parts, "way back not possible since "+since(text))...) // from the target alone, and the same time
		r.says(r.want(1, "rollback", "-y"), parts...)
		r.writing(onTarget)
	}
	r.sql(r.target, "ALTER TABLE app.part ADD COLUMN more int")
	no("more", "Undo that change on the target")
	r.sql(r.target, "ALTER TABLE app.part DROP COLUMN more")
	r.says(r.want(0, "rollback", "--check"), "rows to carry back")
	r.says(r.want(0, "status"), "way back possible")

	r.sql(r.target, "ALTER TABLE app.part ALTER COLUMN note TYPE varchar(200)")
	follow := r.start("", "follow").end() // whoever sees it first records it
	if follow.code != 1 {
		t.Errorf("follow went on over a changed table: %d\n%s", follow.code, follow.text)
	}
	if n := r.ask(r.target, "SELECT count(*)::text FROM pgrunbook.event WHERE data -> 'finding' ->> 'code' LIKE 'BCK%'"); n != "5" {
		t.Errorf("the way back was lost and found twice and lost again, and %s changes are recorded", n)
	}
	no("note")
	r.sql(r.target, "ALTER TABLE app.part ALTER COLUMN note TYPE text")
	no("was rewritten", "without a trace")
	r.want(0, "finish", "-y", "--now")
	r.balance(r.target)
}

// alone runs a command with the target's address and no runbook.
func (r *rig) alone(command string) string {
	r.t.Helper()
	cmd := exec.Command(program, command)
	cmd.Dir, cmd.Env = r.t.TempDir(), append(r.env, "PGRUNBOOK_TARGET_URL="+r.target)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("pgrunbook %s with the target alone: %v\n%s", command, err, out)
	}
	return string(out)
}

// TestNoWayBackAskedFor: without reverse capture the commands say that there never was a way.
func TestNoWayBackAskedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, strings.Replace(plain, `rollback { keep_for = "1h" }`, "rollback { enabled = false }", 1))
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.says(r.want(0, "status"), "way back not possible", "rollback { enabled = false }")
	r.says(r.want(1, "rollback", "--check"), "rollback { enabled = false }")
	r.want(0, "finish", "-y") // nothing to keep
	r.balance(r.target)
}
