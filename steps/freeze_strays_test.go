package steps

import (
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// waitOnTarget counts the captured changes that wait on the target.
func (r *rig) waitOnTarget() int64 {
	r.t.Helper()
	sides, err := openSides(r.t.Context(), r.env, "verify")
	r.must(err)
	defer sides.close(r.t.Context())
	n, err := pendingRows(r.t.Context(), sides.target, nil)
	r.must(err)
	return n
}

// After a way back a partition comes on the source, and is carried to a target whose triggers somebody touched: what passes
// bring to it there is nobody's write, when capture there is made right as well, and the next cutover goes on.
func TestCapturedAgainAfterAWayBack(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.exec(r.target, "UPDATE shop.customer SET name = 'on the target' WHERE id = 7")
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	cutover := []engine.Step{newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)}
	for _, step := range cutover { // the rig's plan has none of them
		r.must(r.env.Journal.Reopen(t.Context(), step.ID(), false, wentBackWords))
	}

	r.exec(r.target, "BEGIN READ WRITE; ALTER TABLE shop.event_2026 ENABLE TRIGGER pgrunbook_capture_ins; COMMIT")
	r.exec(r.source, "CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); INSERT INTO shop.event VALUES ('2027-02-02', 1), ('2027-02-03', 2)")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newVerify(r.env)))
	if n := r.waitOnTarget(); n != 0 {
		t.Errorf("%d changes wait on a target on which nobody wrote", n)
	}
	r.must(afterWayBack(t.Context(), r.env, cutover))
	r.must(r.walk(t.Context(), cutover...))
	r.exec(r.target, "BEGIN READ WRITE; INSERT INTO shop.event VALUES ('2027-02-04', 3); COMMIT") // sessions are kept, also from when it was closed
	r.must(r.env.Journal.Reopen(t.Context(), "rollback", true, "another rollback was begun"))
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	r.sameTables(t)
}
