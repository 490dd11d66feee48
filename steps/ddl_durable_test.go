package steps

import (
	"testing"

	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// DDL that was committed asynchronously is not carried to the target as long as a crash of the source could take it back.
func TestF10F41DDLThatACrashCouldTakeBack(t *testing.T) {
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: sourceMajor, Settings: map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"}})
	r := newRigOn(t, testpg.NewDB(t, c), testpg.NewDB(t, testpg.Shared(t, targetMajor)), shopSetup, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))

	r.exec(r.source, `ALTER TABLE shop.invoice DROP COLUMN total; ALTER TABLE shop.event DETACH PARTITION shop.event_2026`)
	changed, err := openSides(t.Context(), r.env, "test")
	r.must(err)
	changes, err := capture.Check(t.Context(), changed.source, r.env.Run, r.env.Scope.Tables)
	changed.close(t.Context())
	r.must(err)
	sides, err := openSidesToDefine(t.Context(), r.env, "test")
	r.must(err)
	defer sides.close(t.Context())
	memory := journal.NewMemory()
	_, err = memory.Begin(t.Context(), newCatchUp(r.env))
	r.must(err)
	_, err = makeAlike(t.Context(), r.env, memory.Checkpoint(catchUpID, r.env.Sink), sides, changes)
	r.must(err)
	r.must(c.KillPostmaster())
	r.must(c.Start(t.Context()))

	r.want(r.target, "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'shop.invoice'::regclass AND attname = 'total'", "0")
	r.want(r.source, "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'shop.invoice'::regclass AND attname = 'total'", "0")
	r.want(r.source, "SELECT count(*)::text FROM pg_inherits WHERE inhparent = 'shop.event'::regclass", "0")
	sides.close(t.Context())
	r.env.Journal.Close(t.Context())
	r.open()
	r.must(r.catchUp())
	r.sameTables(t)
}
