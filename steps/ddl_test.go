package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// following is a rig whose target follows the source.
func following(t *testing.T, extra string) *rig {
	t.Helper()
	r := newRig(t, extra)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	return r
}

func (r *rig) same(tables ...string) {
	r.t.Helper()
	diffs, err := testpg.Diff(r.t.Context(), r.source, r.target, tables)
	r.must(err)
	for _, d := range diffs {
		r.t.Error(d)
	}
}

func (r *rig) catchUp() error {
	r.must(r.env.Journal.Reopen(r.t.Context(), "catch_up", true, "it is a test"))
	return r.walk(r.t.Context(), newCatchUp(r.env))
}

// Compatible changes are made on the target too, by another process as well, and rows that are
// written afterwards arrive whole.
func TestDDLIsCarried(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.source, `ALTER TABLE shop.customer ADD COLUMN note text DEFAULT 'none';
		ALTER TABLE shop.customer ADD COLUMN seen timestamptz DEFAULT now();
		ALTER TABLE shop.customer ALTER COLUMN name DROP NOT NULL;
		CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
		UPDATE shop.customer SET note = 'changed' WHERE id < 5;
		INSERT INTO shop.customer VALUES (100, NULL, 'new');
		INSERT INTO shop.event VALUES ('2027-02-02', 1)`)
	r.must(r.catchUp())
	r.same("shop.customer", "shop.event", "shop.event_2027")
	if !r.heard(`it has a new column "note"`) || !r.heard("new partition") {
		t.Error("nobody was told of the changes")
	}
	r.env.Journal.Close(t.Context())
	r.open() // as a new process, from the accepted plan
	r.exec(r.source, `UPDATE shop.customer SET note = 'later' WHERE id = 7; INSERT INTO shop.event_2027 VALUES ('2027-03-03', 2); ALTER TABLE shop.customer ADD COLUMN last int`)
	r.must(r.catchUp())
	r.exec(r.source, "UPDATE shop.customer SET last = id")
	r.must(r.catchUp())
	r.same("shop.customer", "shop.event", "shop.event_2027")
	if err := try(t, r.target, "INSERT INTO shop.event_2027 VALUES ('2027-04-04', 3)"); err == nil {
		t.Error("the target's new partition has no gate")
	}
}

// Without the rule, or where no rule fits, the run stops and names the change.
func TestDDLStops(t *testing.T) {
	r := following(t, "")
	r.exec(r.source, "ALTER TABLE shop.customer ADD COLUMN note text")
	err := r.catchUp()
	if err == nil || !strings.Contains(err.Error(), `new column "note"`) || engine.HintOf(err) == "" {
		t.Errorf("on_ddl = stop: %v, hint %q", err, engine.HintOf(err))
	}
	r = following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.source, "ALTER TABLE shop.customer RENAME COLUMN name TO other")
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), `is now "other"`) {
		t.Errorf("a renamed column: %v", err)
	}
}
