package cutover_test

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestOneSideGone: each side's server dies before the flip and the source's after it. The other one
// is left clean, by commands that are killed at their boundaries and repeated, and the application
// writes on where it did.
func TestOneSideGone(t *testing.T) {
	t.Parallel()
	r, source, target := ownServers(t)
	r.write(plain)
	r.begin(r.source, r.target)
	schema, set := r.dump(r.source), r.ask(r.source, settings)
	asFound := func(when string) {
		t.Helper()
		if now := r.dump(r.source); now != schema {
			t.Errorf("%s the source differs:\n%s", when, firstDifference(schema, now))
		}
		if now := r.ask(r.source, settings); now != set {
			t.Errorf("%s the source's settings differ:\n%s", when, firstDifference(set, now))
		}
		r.writing(onSource)
	}
	empty := r.dump(r.target) // but for the journal
	untargeted := func() {
		t.Helper()
		r.must(target.Stop(t.Context(), testpg.Immediate))
		r.writing(onSource)
		r.says(r.want(1, "abort", "-y"), "pgrunbook abort --without-target")
		args := []string{"abort", "-y", "--without-target"}
		for _, point := range []string{"abort.disarmed", "gate.untriggered", "gate.removed", "capture.dropped", "abort.source"} {
			r.killedAt(point, args...)
			r.writing(onSource)
		}
		r.want(0, args...)
		asFound("without its target")
		r.want(0, args...) // nothing is left to do
		r.must(target.Start(t.Context()))
	}
	if soak() { // in the short form it is done with what the next part leaves on the source
		r.want(0, "apply", "-y", "--until", "arm")
		untargeted()
		r.want(0, "abort", "-y", "--drop-target") // it knows of the run still
		r.sql(r.target, "DROP SCHEMA pgrunbook CASCADE")
		asFound("after the target came back")
	}

	r.want(0, "apply", "-y", "--until", "arm")
	r.must(source.Stop(t.Context(), testpg.Immediate))
	r.says(r.want(1, "abort", "-y"), "pgrunbook abort --without-source")
	args := []string{"abort", "-y", "--without-source", "--drop-target"}
	for _, point := range []string{"abort.schema", "gate.removed", "abort.target"} {
		r.killedAt(point, args...)
	}
	r.want(0, args...)
	r.sql(r.target, "DROP SCHEMA pgrunbook CASCADE")
	if now := r.dump(r.target); now != empty {
		t.Errorf("without its source the target differs:\n%s", firstDifference(empty, now))
	}
	r.must(source.Start(t.Context())) // it has capture and an open gate of a run that is no more
	r.writing(onSource)
	r.says(r.want(13, "apply", "-y"), "pgrunbook run")
	r.says(r.want(0, "status"), "the source holds run", "and is open", "pgrunbook abort --without-target")
	if soak() {
		r.want(0, "abort", "-y", "--without-target")
	} else {
		untargeted()
	}
	asFound("after the source came back")

	r.must(source.Configure(t.Context(), map[string]string{"wal_sender_timeout": "0"}))
	standby, err := source.Standby(t.Context(), "second")
	r.must(err)
	t.Cleanup(func() { r.must(standby.Remove()) })
	r.must(standby.Pause())
	r.says(r.want(0, "apply", "-y"), "standbys of the source lag: second (", "one would take writes code=CUT003", "standbys of the source do not have the COMMIT that closed it yet: second (", "Promoted now, one would take writes code=CUT003")
	r.writing(onTarget)
	r.says(r.want(0, "status"), "a failover of the source now would reopen it: these standbys do not have the COMMIT that closed it: second (")
	r.lagsBeyondTheFlip(standby)
	r.says(r.want(15, "abort", "-y", "--without-target"), "the flip happened", "pgrunbook rollback --without-target")
	r.dies(source)
	r.writing(onTarget)
	text := r.want(0, "status")
	r.says(text, "The target takes writes", "way back not possible since 20", "it was possible at 20", "finish --without-source", "old side the source: not asked how many writes it refused")
	if again := r.want(0, "status"); since(again) != since(text) {
		t.Errorf("since when there is no way back is said in two ways:\n%s\n%s", since(text), since(again))
	}
	r.says(r.want(1, "rollback", "-y"), "connecting to the source")
	r.says(r.want(1, "finish", "-y", "--now"), "pgrunbook finish --without-source")
	args = []string{"finish", "-y", "--now", "--without-source"}
	for _, point := range []string{"gate.untriggered", "gate.removed", "finish.target", "finish.walked"} {
		r.killedAt(point, args...)
		r.writing(onTarget)
	}
	r.want(0, args...)
	r.says(r.want(0, "status"), "is finished")
	r.sql(r.target, "DROP SCHEMA pgrunbook CASCADE")
	if left := r.ask(r.target, ours); left != "" {
		t.Errorf("left on the target: %s", left)
	}
	r.writing(onTarget)
	r.balance(r.target)
}

// lagsBeyondTheFlip lets a standby of the source get what closed it and nothing after that: a failover to it
// would reopen nothing, and status does not say so.
func (r *rig) lagsBeyondTheFlip(standby *testpg.Cluster) {
	r.t.Helper()
	r.must(standby.Resume())
	closed := r.ask(r.target, "SELECT certificate ->> 'closed_at' FROM pgrunbook.flip WHERE outcome = 'done'")
	r.says(r.want(0, "status", "--certificate"), "by position "+closed+" of the source's log")
	r.eventually("the standby has the COMMIT that closed the source", func() bool {
		return r.ask(r.source, "SELECT coalesce(bool_and(flush_lsn >= '"+closed+"'), false)::text FROM pg_stat_replication") == "true"
	})
	r.must(standby.Pause())
	r.sql(r.source, "BEGIN READ WRITE; CREATE TABLE app.later (); DROP TABLE app.later; COMMIT")
	if r.ask(r.source, "SELECT (flush_lsn < pg_current_wal_lsn())::text FROM pg_stat_replication") != "true" {
		r.t.Error("the standby does not lag")
	}
	if text := r.want(0, "status"); strings.Contains(text, "would reopen it") {
		r.t.Errorf("the standby has what closed the source, and status says:\n%s", text)
	}
}

// since cuts out of a status since when there is no way back.
func since(status string) string {
	_, rest, _ := strings.Cut(strings.Join(strings.Fields(status), " "), "not possible since ")
	at, _, _ := strings.Cut(rest, " ")
	return at
}
