package faults_test

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

var untilCapture = []string{"apply", "--auto-approve", "--until", "capture"}

const (
	// givenUp is the first pass after an attempt that ended.
	givenUp = "freeze.prepared/pass.begun@1"

	lost = `the ledger: .* lost [1-9]\d*`

	endHold = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^pgrunbook .* hold'"

	// pastTheGate is what an owner may do that thinks of constraints alone.
	pastTheGate = `ALTER TABLE app.aim DISABLE TRIGGER ALL; INSERT INTO app.aim VALUES (7001, 'unseen'); ALTER TABLE app.aim ENABLE TRIGGER ALL`

	// everyKind are changes of which each needs a rule of its own.
	everyKind = `BEGIN; TRUNCATE app.scratch; INSERT INTO app.scratch (text) SELECT 'after' FROM generate_series(1, 20); COMMIT;
BEGIN; CREATE TEMPORARY TABLE gone AS SELECT * FROM app.label WHERE n % 5 = 0; DELETE FROM app.label WHERE n % 5 = 0;
INSERT INTO app.label SELECT upper(tag::text), n FROM gone; COMMIT;
UPDATE app.aim SET id = id + 10000 WHERE id % 7 = 0;
BEGIN; DELETE FROM app.slot WHERE id = 1; INSERT INTO app.slot VALUES (200001, 1); COMMIT;
SET session_replication_role = replica; INSERT INTO app.aim VALUES (6001, 'by a replica')`
)

var plots = []plot{
	{
		name: "the runner dies when the final pass is about to be durable on the target", full: true,
		play: func(r *rig) {
			r.meanwhile("freeze.held/pass.marked@1:kill", moment{"freeze.prepared@1", r.some})
		},
		broken: []broken{{rules: "pass.forget_first", seen: lost}},
	},
	{
		name: "a writer in flight", full: true,
		play: func(r *rig) {
			var slow, quiet *pgx.Conn
			release := func() {
				r.end(slow, "COMMIT")
				r.end(quiet, "COMMIT")
				r.client.still.Store(false)
			}
			r.meanwhile("",
				moment{"freeze.prepared@1", func() {
					r.client.still.Store(true)
					quiet = r.begin("LOCK TABLE ledger.account IN SHARE MODE") // what others write would be noticed
					slow = r.begin("UPDATE app.aim SET v = 'slow' WHERE id = 7")
				}},
				moment{givenUp, release}, // it was in the way
				moment{"freeze.looked@1", func() {
					release()
					r.some()
				}})
		},
		broken: []broken{
			{rules: "freeze.no_drain", seen: `app\.aim: missing: id="7".*`},
		},
	},
	{
		name: "a hold that somebody ends", full: true,
		play: func(r *rig) {
			r.meanwhile("", moment{"freeze.looked@1", func() {
				r.sql(r.source, endHold)
				r.some()
			}})
		},
		broken: []broken{{rules: "freeze.flag_outside", seen: lost}},
	},
	{
		name: "a smaller transaction id that commits later",
		play: func(r *rig) {
			r.unverified()
			r.ended(untilArm...)
			slow := r.begin("INSERT INTO app.aim VALUES (5001, 'the smaller id')")
			r.sql(r.source, "INSERT INTO app.aim VALUES (5002, 'the larger one')")
			r.meanwhile("", moment{"pass.committed@1", func() { r.end(slow, "COMMIT") }})
		},
		broken: []broken{{rules: "pass.forget_by_xid", seen: `app\.aim: missing: id="5001".*`}},
	},
	{
		name: "more changes than one piece takes",
		play: func(r *rig) {
			r.unverified()
			r.ended(untilCopy...)
			for i := range 5 { // a piece ends between two transactions
				r.sql(r.source, fmt.Sprintf("INSERT INTO app.many SELECT generate_series(%d, %d)", 50000*i+1, 50000*(i+1)))
			}
			r.ended(applyArgs...)
		},
		broken: []broken{{rules: "pass.forget_unread", seen: `app\.many: missing`}},
	},
	{
		name: "an attempt that is given up",
		play: func(r *rig) {
			var slow *pgx.Conn
			r.meanwhile("",
				moment{"freeze.prepared@1", func() { slow = r.begin("UPDATE app.aim SET v = 'slow' WHERE id = 7") }},
				moment{givenUp, func() {
					moved := r.writes(1, time.Second)
					r.end(slow, "COMMIT")
					if moved {
						r.found = r.carried(0, 1)
					}
				}})
		},
		broken: []broken{{rules: "freeze.setval", seen: `app\.aim: missing: id="7".*|` + lost}},
	},
	{
		name: "numbers that are handed out before the hold",
		play: func(r *rig) {
			r.meanwhile("", moment{"freeze.prepared@1", func() { r.sql(r.source, "SELECT nextval('app.ticket') FROM generate_series(1, 1000)") }})
		},
		broken: []broken{{rules: "freeze.sequences_first", seen: `sequence app\.ticket stands at .*`}},
	},
	{
		name: "commits between the final pass's locks and the hold",
		play: func(r *rig) { r.meanwhile("", moment{"freeze.prepared@1", r.some}) },
		broken: []broken{
			{rules: "pass.snapshot_first", tool: `\d+ changes are left after the final pass`},
			{rules: "pass.snapshot_first,freeze.no_count", seen: lost},
		},
	},
	{
		name: "a runner that dies between the COMMITs",
		play: func(r *rig) {
			r.meanwhile("freeze.between@1:kill")
		},
		broken: []broken{{rules: "freeze.target_first", seen: `both sides took writes.*`}},
	},
	{
		name: "a runner that dies after its decision",
		play: func(r *rig) {
			r.meanwhile("freeze.decided@1:kill")
		},
		broken: []broken{{rules: "freeze.trust_journal", tool: "undid exec repoint.* the flip did not happen"}},
	},
	{
		name: "a writer that disables triggers before the hold",
		play: func(r *rig) {
			unseen := r.begin("SELECT 1")
			r.meanwhile("",
				moment{"freeze.prepared@1", func() { r.end(unseen, pastTheGate) }},
				moment{givenUp, func() { r.end(unseen, "ROLLBACK") }}, // it was in the way
				moment{"freeze.looked@1", func() { r.end(unseen, "COMMIT") }})
		},
		broken: []broken{{rules: "freeze.no_proof", seen: `app\.aim: missing: id="7001".*`}},
	},
	{
		name:   "a writer that disables triggers after the decision",
		play:   func(r *rig) { r.meanwhile("", moment{"freeze.decided@1", func() { r.sql(r.source, pastTheGate) }}) },
		broken: []broken{{rules: "freeze.no_last_look", seen: `app\.aim: missing: id="7001".*`}},
	},
	{
		name: "changes of every kind",
		play: func(r *rig) {
			r.unverified()
			r.ended(untilCopy...)
			r.sql(r.source, everyKind)
			r.ended(applyArgs...)
		},
		broken: []broken{
			{rules: "pass.marks_last", seen: `app\.scratch: missing.*`},
			{rules: "pass.bare_operator", seen: `app\.label: .*`},
			{rules: "capture.new_key_only", seen: `app\.aim: extra.*`},
			{rules: "capture.no_truncation", seen: `app\.scratch: extra.*`},
			{rules: "capture.origin_only", seen: `app\.aim: missing: id="6001".*`},
			{rules: "pass.upsert_first", tool: `\d+ rows were read but \d+ were written`},
		},
	},
	{
		name: "transactions over several tables",
		play: func(r *rig) {
			r.unverified()
			r.ended(untilCatchUp...)
			r.summed()
			for range 5 {
				r.ended(untilCatchUp...)
			}
			r.ended(applyArgs...)
		},
		broken: []broken{{rules: "pass.commit_each", seen: `the target shows \d+ accounts with \d+ altogether, \d+ of them unlike their entries`}},
	},
	{
		name: "rows that move while they are loaded",
		play: func(r *rig) {
			r.edit("workers = 2", "workers = 1") // another one would read on meanwhile
			r.meanwhile("", moment{"load.committed@3", func() { r.sql(r.source, "UPDATE app.item SET filler = filler || 'moved'") }})
		},
		broken: []broken{{rules: "load.no_scrub", tool: `could not create unique index.*`}},
	},
	{
		name: "a runner that dies when a chunk is on the target",
		play: func(r *rig) {
			r.unverified()
			r.ended(untilCapture...)
			r.kill("load.marked:sleep=300ms", r.target, "SELECT count(*) FROM app.trail")
		},
		broken: []broken{{rules: "load.mark_apart", seen: `app\.trail: extra.*`}},
	},
}
