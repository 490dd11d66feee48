package steps

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// seenOn makes the run have seen the source on another timeline, whose server had given out more transaction ids.
func (r *rig) seenOn(timeline string) {
	r.t.Helper()
	ahead := query(r.t, r.source, "SELECT format('%1$s:%1$s:', txid_current() + 1000000)")
	r.exec(r.target, `BEGIN READ WRITE; UPDATE pgrunbook.run SET source_identity = jsonb_set(source_identity, '{timeline}', '`+timeline+`');
		UPDATE pgrunbook.watermark SET timeline = `+timeline+`, snapshot = '`+ahead+`' WHERE from_side LIKE 'source/%'; COMMIT`)
}

// reopen opens the run as a new process does.
func (r *rig) reopen(o OpenOptions) error {
	r.t.Helper()
	ctx := context.WithoutCancel(r.t.Context())
	r.env.Journal.Close(ctx)
	o.ToolVersion = "test"
	err := OpenRun(ctx, r.env, o)
	if err == nil {
		run := r.env.Journal
		r.t.Cleanup(func() { run.Close(ctx) })
	}
	return err
}

// startsAgain empties a table for another load, which nobody makes.
func (r *rig) startsAgain(table string) error {
	cp := r.env.Journal.Checkpoint("test", r.env.Sink)
	ctx, limits, err := watchLimits(r.t.Context(), r.env, cp)
	r.must(err)
	defer limits.close()
	for _, t := range r.env.Scope.Tables {
		if t.Display() == table {
			return startAgain(ctx, r.env, limits, cp, unfit(&pass.UnfitError{Table: t, Err: errors.New("it is a test")}))
		}
	}
	return errors.New("no such table")
}

// Tables without a key of a source that was promoted: what is captured of them may look as if it had been applied. verify
// loads them again before it compares, unless a person says that nothing was lost.
func TestF12PromotedSourceOfTablesWithoutAKey(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigWith(t, source, target, `CREATE SCHEMA shop; CREATE TABLE shop.lock (id int PRIMARY KEY);
		CREATE TABLE shop.note (n int); CREATE TABLE shop.diary (n int); CREATE TABLE shop.page (id int PRIMARY KEY);
		INSERT INTO shop.note VALUES (1), (2); INSERT INTO shop.diary VALUES (1), (1); INSERT INTO shop.page VALUES (1)`,
		`"shop.*"`, `table "shop.note" { identity = "full_row" }
table "shop.diary" { identity = "append_only" }`)
	const timelines = "SELECT string_agg(DISTINCT timeline::text, ', ') FROM pgrunbook.watermark WHERE from_side LIKE 'source/%'"
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.source, "INSERT INTO shop.note VALUES (3); INSERT INTO shop.diary VALUES (2)")
	r.must(r.catchUp())
	r.want(r.target, timelines, "1")

	r.seenOn("7")
	r.exec(r.source, "INSERT INTO shop.note VALUES (4); DELETE FROM shop.note WHERE n = 1; INSERT INTO shop.diary VALUES (3); INSERT INTO shop.page VALUES (2)")
	if err := r.reopen(OpenOptions{}); engine.ClassOf(err) != engine.ClassAmbiguous {
		t.Fatalf("a source that was promoted: %v", err)
	}
	r.must(r.reopen(OpenOptions{AnyPlace: true}))
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	r.sameTables(t)
	for _, table := range []string{"note", "diary"} {
		if !r.heard(`row images of "shop"."` + table + `" cannot be applied: the source was promoted`) {
			t.Errorf("nobody was told why %s is loaded again", table)
		}
	}
	r.must(r.reopen(OpenOptions{})) // proved

	// A comparison that died while it loaded is made again, and loads first.
	r.seenOn("7")
	r.must(r.reopen(OpenOptions{AnyPlace: true}))
	r.exec(r.source, "INSERT INTO shop.note VALUES (5)")
	r.must(r.startsAgain("shop.note"))
	r.must(r.reopen(OpenOptions{AnyPlace: true}))
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	r.sameTables(t)

	// Who had everything that was applied tells by it what was.
	r.exec(r.source, "INSERT INTO shop.note VALUES (6); INSERT INTO shop.diary VALUES (4)")
	r.must(r.catchUp())
	r.exec(r.target, "UPDATE pgrunbook.run SET source_identity = jsonb_set(source_identity, '{timeline}', '7'); UPDATE pgrunbook.watermark SET timeline = CASE from_side WHEN 'source' THEN 5 ELSE 7 END")
	r.must(r.env.Journal.Approve(t.Context(), engine.Approval{Name: "source-timeline-1", By: "anna", At: time.Now(), PlanDigest: r.env.Journal.Digest}))
	r.must(r.reopen(OpenOptions{}))
	r.want(r.target, timelines, "1")
	r.want(r.target, "SELECT timeline::text FROM pgrunbook.watermark WHERE from_side = 'source'", "5")
}
