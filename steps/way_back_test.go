package steps

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// wayBackOpen fails where writes could not go back.
func (r *rig) wayBackOpen() {
	r.t.Helper()
	back, err := WayBack(r.t.Context(), r.env)
	r.must(err)
	if !back.Possible {
		r.t.Errorf("after the flip the way back is %+v", back)
	}
}

// A rollback that dies right after its flip leaves the steps of the cutover done, and the proof from before it. Neither
// counts for the next cutover, whatever is typed meanwhile, and what was made again since is not set back another time.
func TestDeadRollbackLeavesNoProof(t *testing.T) {
	r := following(t, "")
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	back := newRollback(r.env, nil).(*rollbackStep)
	r.must(r.walk(t.Context(), &back.freezeStep))
	st, err := ReadStatus(t.Context(), r.env.Target, r.env.Source)
	r.must(err)
	st.Holder = nil // dead
	if next := st.next(); !strings.HasPrefix(next, "pgrunbook apply") {
		t.Errorf("status leads to %q", next)
	}
	built := []engine.Step{newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)}
	state := func(want string) {
		t.Helper()
		r.want(r.target, "SELECT string_agg(id || ' ' || state, ', ' ORDER BY id) FROM pgrunbook.step WHERE id IN ('verify', 'freeze', 'reverse')", want)
	}
	state("freeze done, reverse done, verify done")
	r.must(afterWayBack(t.Context(), r.env, built))
	state("freeze failed, reverse failed, verify failed")
	r.exec(r.target, "BEGIN READ WRITE; SELECT set_config('pgrunbook.mark', mark, true) FROM pgrunbook.side; UPDATE shop.customer SET name = 'unseen' WHERE id = 5; COMMIT")
	if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
		t.Fatalf("the comparison before another cutover says %v", err)
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'seen' WHERE id = 5")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newVerify(r.env), newReverse(r.env)))
	r.must(afterWayBack(t.Context(), r.env, built))
	state("freeze failed, reverse done, verify done")
	r.must(r.walk(t.Context(), newArm(r.env), newFreeze(r.env, nil)))
	for _, s := range built {
		r.env.Plan.Steps = append(r.env.Plan.Steps, engine.StepPlan{ID: s.ID(), Phase: s.Phase()})
	}
	r.must(r.env.Journal.Reopen(t.Context(), "rollback", true, "another rollback was begun"))
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	state("freeze failed, reverse failed, verify failed")
}

// What no pass can carry back shuts the way back as soon as it is captured, in words that lead on; what they say opens it
// again, but for tables that may take no such change at all.
func TestWayBackKnowsWhatNoPassCarries(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigWith(t, source, target, `CREATE SCHEMA shop; CREATE TABLE shop.lock (id int PRIMARY KEY);
		CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'glad', 'calm');
		CREATE TABLE shop.diary (n int); INSERT INTO shop.diary VALUES (1), (2);
		CREATE TABLE shop.note (n int) PARTITION BY RANGE (n); CREATE TABLE shop.note_0 PARTITION OF shop.note FOR VALUES FROM (0) TO (10);
		CREATE TABLE shop.note_1 PARTITION OF shop.note FOR VALUES FROM (10) TO (20); INSERT INTO shop.note VALUES (1), (1), (11), (12);
		CREATE TABLE shop.label (id int, mood shop.mood, PRIMARY KEY (id, mood)) PARTITION BY HASH (mood); CREATE TABLE shop.label_0 PARTITION OF shop.label FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE shop.label_1 PARTITION OF shop.label FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO shop.label SELECT n, m FROM generate_series(1, 5) n, unnest(enum_range(NULL::shop.mood)) m`,
		`"shop.*"`, `table "shop.note" { identity = "full_row" }
table "shop.diary" { identity = "append_only" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	shut := func(why, hint string) {
		t.Helper()
		back, err := WayBack(t.Context(), r.env)
		r.must(err)
		if back.Possible || !strings.Contains(back.Why, why) || !strings.Contains(back.Hint, hint) || strings.Contains(back.Hint, "same command") {
			t.Errorf("the way back is %+v; want %q and %q", back, why, hint)
		}
		passer := newPasser(r.env, r.env.Target, r.env.Source, r.env.Journal.Checkpoint("test", r.env.Sink))
		defer func() { _ = passer.Close(t.Context()) }()
		if _, err := passer.Exact(t.Context(), pass.Options{Patience: time.Second}); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(engine.HintOf(err), hint) || strings.Contains(engine.HintOf(err), "same command") {
			t.Errorf("a pass back says %v, hint %q; want %q and %q", err, engine.HintOf(err), why, hint)
		}
	}
	for _, table := range []string{"shop.note", "shop.label"} {
		r.exec(r.target, "TRUNCATE "+table+"_1")
		shut("was truncated", "Put its rows aside")
		r.exec(r.target, "BEGIN; CREATE TEMP TABLE aside ON COMMIT DROP AS SELECT * FROM "+table+"; TRUNCATE "+table+"; INSERT INTO "+table+" SELECT * FROM aside; COMMIT")
		back, err := WayBack(t.Context(), r.env)
		r.must(err)
		if !back.Possible || back.Pending == 0 {
			t.Errorf("after %s was written anew the way back is %+v", table, back)
		}
	}
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	r.same("shop.note", "shop.label") // whose partitions differ on each side
	for _, id := range []engine.StepID{"verify", "reverse", "arm", "freeze"} {
		r.must(r.env.Journal.Reopen(t.Context(), id, false, "writes went back"))
	}
	r.must(r.walk(t.Context(), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.exec(r.target, "INSERT INTO shop.diary VALUES (3); DELETE FROM shop.diary WHERE n = 1")
	shut("append_only", "pgrunbook finish")
	r.exec(r.target, "TRUNCATE shop.diary")
	shut("append_only", "pgrunbook finish")
}

// Without comparisons nobody finds out that a change on the target before the flip is one that no pass carries back: it would
// shut the way back from the first second on.
func TestStrayChangeThatNoPassCarriesBack(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigWith(t, source, target, "CREATE SCHEMA shop; CREATE TABLE shop.lock (id int PRIMARY KEY); CREATE TABLE shop.diary (n int); INSERT INTO shop.diary VALUES (1), (2)",
		`"shop.*"`, `table "shop.diary" { identity = "append_only" }
verify { enabled = false }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.target, `ALTER TABLE shop.diary DISABLE TRIGGER "!pgrunbook_gate"; DELETE FROM shop.diary WHERE n = 1; ALTER TABLE shop.diary ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`)
	if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errOneWay) || !strings.Contains(err.Error(), "append_only") || !strings.Contains(engine.HintOf(err), "verify") {
		t.Fatalf("the freeze says %v, hint %q", err, engine.HintOf(err))
	}
}
