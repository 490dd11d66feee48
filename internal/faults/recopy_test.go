package faults_test

import (
	"os"
	"path/filepath"
	"testing"
)

// rewrite changes every row of a table in a way that no trigger sees.
const rewrite = "ALTER TABLE app.item ALTER COLUMN filler TYPE varchar USING filler || '!'; ALTER TABLE app.item ALTER COLUMN filler TYPE text USING filler || '?'"

// TestF01DeathsInSecondLoad rewrites a table after the copy, so that catch_up loads it again, and dies
// in that load: the copy step is done by then and does not come back.
func TestF01DeathsInSecondLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.finally("apply", "--auto-approve", "--until", "copy")
	r.sql(r.source, rewrite)
	caughtUp := []string{"apply", "--auto-approve", "--until", "catch_up"}
	r.die(caughtUp, []string{"load.again", "load.claimed", "load.marked", "load.scrubbing", "load.keyed"})
	r.sql(r.source, rewrite) // once more: the death above has left the rest of catch_up's part to the load
	r.die(caughtUp, []string{"catch_up.accepted"})
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF40DeathsInCarriedDDL adds a column and a partition while the target follows, where the runbook
// wants that carried, and dies at each boundary of carrying it. The writers never stop.
func TestF40DeathsInCarriedDDL(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.WriteFile(filepath.Join(r.dir, "faults.runbook.hcl"), append([]byte("schema { on_ddl = \"carry\" }\n"), runbookHCL...), 0o600))
	r.finally("apply", "--auto-approve", "--until", "copy")
	r.sql(r.source, `ALTER TABLE app.slot ADD COLUMN extra int DEFAULT 7; UPDATE app.slot SET extra = id WHERE id % 3 = 0;
		CREATE TABLE app.event_4 PARTITION OF app.event FOR VALUES FROM ('2030-01-01') TO ('2031-01-01'); INSERT INTO app.event VALUES ('2030-05-05', 1, 'new')`)
	r.die(applyArgs, []string{"ddl.changed", "ddl.rearmed", "ddl.accepted"})
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF01DeathAfterRewrite rewrites a table while its chunks are copied, and dies when it has started
// over: the next run must find out for itself that rows of before are on the target.
func TestF01DeathAfterRewrite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("load.following@1:sleep=3s;load.scrubbed@1:sleep=3s;load.again@1:kill", applyArgs...)
	if !p.passed("load.committed", 10) {
		t.Fatal("the runner copied nothing")
	}
	r.sql(r.source, rewrite)
	if o := p.end(); o.signal == 0 {
		t.Fatalf("the runner did not start the table over: %s\n%s", o, o.text)
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}
