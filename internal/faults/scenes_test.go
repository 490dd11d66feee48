package faults_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A play is one migration whose scenes make it pass names that an undisturbed run passes only by
// chance, or never. Each scene also stands alone: what it needs of those before, before makes.
type play struct {
	title  string
	scenes []walk
}

var plays = []play{
	{"F01 F40 F41 in the load and in carried DDL", changes},
	{"F01 F31 around the cutover and without the target", leavings},
	{"F02 between the COMMITs", betweens},
}

// isElsewhere: it is a scene that passes the name.
func isElsewhere(name string) bool {
	return slices.ContainsFunc(plays, func(p play) bool {
		return slices.ContainsFunc(p.scenes, func(w walk) bool { return slices.Contains(w.names, name) })
	})
}

// TestElsewhere dies at every name of every scene: in the short form all of a play share one migration, with
// PGRUNBOOK_SOAK each has one of its own for its first, middle and last hit.
func TestElsewhere(t *testing.T) {
	all := registered(t)
	for _, p := range plays {
		for _, w := range p.scenes {
			for _, name := range slices.Concat(w.names, w.also) {
				if !slices.Contains(all, name) {
					t.Errorf("the source has no failpoint %s any more", name)
				}
			}
		}
		t.Run(p.title, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for _, w := range p.scenes {
				w.before(r)
				r.die(w)
			}
			p.scenes[len(p.scenes)-1].after(r)
		})
		for _, w := range cond(soak(), p.scenes, nil) {
			t.Run(w.what, func(t *testing.T) {
				t.Parallel()
				passed := w
				if !t.Run("undisturbed", func(t *testing.T) {
					r := newRig(t)
					w.before(r)
					passed = r.traced(w)
					r.ends(w)
					w.after(r)
				}) {
					return
				}
				eachHit(t, passed)
			})
		}
	}
}

var (
	untilCopy        = []string{"apply", "--auto-approve", "--until", "copy"}
	untilCatchUp     = []string{"apply", "--auto-approve", "--until", "catch_up"}
	untilConstraints = []string{"apply", "--auto-approve", "--until", "constraints"}
	untilVerify      = []string{"apply", "--auto-approve", "--until", "verify"}
)

// aside is where steps of the runbook leave a line each time that they run.
const aside = `CREATE SCHEMA aside; CREATE TABLE aside.ran (step text)`

const sceneRunbook = `schema {
  roles  = "create"
  on_ddl = "carry"
  after {
    step "sql" "once" {
      on        = "target"
      statement = "INSERT INTO aside.ran VALUES ('once')"
    }
    step "sql" "alone" {
      on          = "target"
      statement   = "INSERT INTO aside.ran VALUES ('alone')"
      transaction = false
    }
  }
}
table "app.dumped" { method = "pg_dump" }
table "app.brought" { method = "external" }
table "app.large" { chunk = "16MiB" }

source { url`

// sceneSQL makes tables that are loaded by other means, one whose indexes are made beside writers (a row
// fills a page), and one of a role that the target lacks.
const sceneSQL = `CREATE TABLE app.dumped (id int PRIMARY KEY, note text); INSERT INTO app.dumped SELECT g, 'dumped' FROM generate_series(1, 500) g;
	CREATE TABLE app.brought (id int PRIMARY KEY, note text); INSERT INTO app.brought SELECT g, 'brought' FROM generate_series(1, 500) g;
	CREATE TABLE app.large (id int PRIMARY KEY, code text NOT NULL, filler text) WITH (fillfactor = 10);
	INSERT INTO app.large SELECT g, md5(g::text), repeat('x', 500) FROM generate_series(1, 8400) g; CREATE UNIQUE INDEX large_code ON app.large (code);
	ANALYZE app.large; CREATE ROLE %[1]s; CREATE TABLE app.owned (id int PRIMARY KEY); INSERT INTO app.owned VALUES (1); ALTER TABLE app.owned OWNER TO %[1]s;`

// scenery prepares a migration for the scenes of changes.
func (r *rig) scenery() {
	r.t.Helper()
	if r.set {
		return
	}
	r.set, r.waits = true, true
	r.edit("source { url", sceneRunbook)
	config, err := pgx.ParseConfig(r.source)
	r.must(err)
	r.sql(r.source, fmt.Sprintf(sceneSQL, pgx.Identifier{"owner_of_" + config.Database}.Sanitize())+extra)
	r.sql(r.target, aside)
}

// bring loads the table that the run waits for, as its message says, and says that it is there.
func (r *rig) bring() {
	r.t.Helper()
	o := r.run("", untilCopy...)
	if o.code == 0 {
		return
	}
	mark := regexp.MustCompile(`pgrunbook\.mark=([0-9a-z-]+)`).FindStringSubmatch(strings.Join(strings.Fields(o.text), " "))
	if o.code != 14 || mark == nil {
		r.t.Fatalf("%s, want 14 and how to load\n%s", o, o.text)
	}
	from, err := pgx.Connect(r.t.Context(), r.source)
	r.must(err)
	defer func() { _ = from.Close(r.t.Context()) }()
	var rows string
	r.must(from.QueryRow(r.t.Context(), "SELECT string_agg(format('(%s, %L)', id, note), ', ') FROM app.brought").Scan(&rows))
	r.sql(r.target, "SET session_replication_role = replica; SET pgrunbook.mark = '"+mark[1]+"'; TRUNCATE app.brought; INSERT INTO app.brought VALUES "+rows)
	if o := r.run("", "approve", "external-copy", "--by", "test"); o.code != 0 {
		r.t.Fatalf("approving: %s\n%s", o, o.text)
	}
}

// copied brings a migration with its scenery to the end of the copy.
func (r *rig) copied() {
	r.t.Helper()
	r.scenery()
	r.bring()
	r.finally(untilCopy...)
}

// changed looks at a migration with its scenery when all is over.
func changed(r *rig) {
	r.t.Helper()
	r.copied()
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	if n := r.number(r.target, "SELECT count(*) FROM aside.ran WHERE step = 'once'"); n != 1 {
		r.t.Errorf("the step whose mark commits with it took effect %d times", n)
	}
	if n := r.number(r.target, "SELECT count(*) FROM aside.ran WHERE step = 'alone'"); n < 1 {
		r.t.Error("the step without a transaction never ran")
	}
	if n := r.number(r.target, "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('app.large_code') AND indisvalid AND indisunique"); n != 1 {
		r.t.Error("the index that is made beside writers is not there as it should be")
	}
	if n := r.number(r.target, "SELECT count(*) FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner WHERE c.oid = to_regclass('app.owned') AND o.rolname LIKE 'owner_of_%'"); n != 1 {
		r.t.Error("the role that the target lacked does not own its table")
	}
	r.balance(r.target)
}

// following brings a migration with its scenery to catch_up, and changes its source then.
func following(sql string) func(r *rig) {
	return func(r *rig) {
		r.t.Helper()
		r.copied()
		r.sql(r.source, sql)
	}
}

// moreExtra are rows that come when a runner has died.
const moreExtra = `INSERT INTO app.extra (note) VALUES ('late'); UPDATE app.extra SET note = note || '.' WHERE id % 7 = 0; DELETE FROM app.extra WHERE id IN (SELECT min(id) FROM app.extra)`

var changes = []walk{
	{
		what: "load by other means", args: untilCopy, before: (*rig).scenery, end: func(*rig) {}, after: changed,
		names: []string{"dump.roles", "sql.ran", "sql.committed", "sql.alone", "load.cleared", "copy.dumped", "load.dumped", "load.whole"},
	},
	{what: "load by a person", args: untilCopy, before: func(r *rig) { r.scenery(); r.bring() }, after: changed, names: []string{"load.taken"}},
	{what: "accepted rewrite", args: untilCatchUp, before: following(rewrite), after: changed, names: []string{"catch_up.accepted"}},
	{
		what: "rewrite", args: untilCatchUp, before: following(rewrite), after: changed, names: []string{"load.emptied", "load.again"},
		also: []string{"load.claimed", "load.marked", "load.scrubbing", "load.keyed"},
	},
	{
		what: "columns and partitions", args: untilCatchUp, after: changed, names: []string{"ddl.begun", "ddl.cleared", "ddl.changed", "ddl.rearmed", "ddl.accepted"},
		before: following(`ALTER TABLE app.slot ADD COLUMN extra int DEFAULT 7; UPDATE app.slot SET extra = id WHERE id % 3 = 0;
			CREATE TABLE app.event_4 PARTITION OF app.event FOR VALUES FROM ('2030-01-01') TO ('2031-01-01'); INSERT INTO app.event VALUES ('2030-05-05', 1, 'new');
			ALTER TABLE app.event DETACH PARTITION app.event_1; ALTER TABLE app.event ATTACH PARTITION app.event_1 FOR VALUES FROM ('2025-12-01') TO ('2026-04-01'); INSERT INTO app.event VALUES ('2025-12-24', 1, 'early')`),
	},
	{
		what: "definitions", args: untilCatchUp, after: changed, names: []string{"definitions.begun", "definitions.carried", "definitions.restored"},
		before: following(`ALTER TABLE app.part ADD CONSTRAINT part_no CHECK (no > 0); CREATE VIEW app.names AS SELECT name FROM app.item`),
	},
	{
		what: "dropped tables", args: untilCatchUp, before: following("DROP TABLE app.extra, app.heap; " + extra), write: moreExtra,
		names: []string{"leave.dropped"}, end: func(*rig) {}, after: changed, // they are dropped once more before they have left
	},
	{
		what: "dropped and new tables", args: untilCatchUp, after: changed, write: moreExtra,
		names:  []string{"leave.forgotten", "join.prepared", "join.recorded", "join.armed"},
		before: following("DROP TABLE app.extra, app.heap; " + extra + "; CREATE TABLE app.fresh (id int PRIMARY KEY, note text); INSERT INTO app.fresh VALUES (1, 'new')"),
	},
	{
		what: "dropped column", args: untilCatchUp, after: changed, names: []string{"ddl.dropped"},
		before: following("ALTER TABLE app.extra DROP COLUMN note; ALTER TABLE app.extra ADD COLUMN note text DEFAULT 'again'"),
	},
	{what: "index of a large table", args: untilConstraints, before: (*rig).copied, after: changed, names: []string{"dump.concurrently"}},
}

// pooler puts a pooler into the runbook.
func (r *rig) pooler() {
	r.t.Helper()
	if r.set {
		return
	}
	r.set = true
	b := testpg.StartBouncerT(r.t, testpg.BouncerOptions{Databases: map[string]string{"erp": r.source}})
	entry, err := testpg.BouncerEntry("", r.target)
	r.must(err)
	r.edit("cutover {", fmt.Sprintf("cutover {\n  pooler \"pgbouncer\" \"front\" {\n    admin       = %q\n    database    = \"erp\"\n    config_file = %q\n    connect     = %q\n  }\n",
		b.Console(testpg.BouncerAdmin), b.DatabasesFile, strings.TrimPrefix(entry, " = ")))
}

// nowhere is the address of a server that is gone.
const nowhere = "postgresql://postgres@127.0.0.1:9/gone?sslmode=disable&connect_timeout=3"

// givenUp brings a migration to the target, takes all that was written there back to the source, and then
// the target away.
func (r *rig) givenUp() {
	r.t.Helper()
	r.pooler()
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.stop()
	tables, err := testpg.AllTables(r.t.Context(), r.target)
	r.must(err)
	tables = slices.DeleteFunc(tables, func(name string) bool { return strings.Contains(name, "jobs") }) // only a freeze carries it
	follow := r.start("", "follow")
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		diffs, err := testpg.Diff(r.t.Context(), r.target, r.source, tables)
		r.must(err)
		if len(diffs) == 0 {
			break
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("reverse passes do not bring all back: %v", diffs)
		}
	}
	follow.signal(syscall.SIGINT)
	follow.end()
	r.via[1] = nowhere
}

// enableAll is what takes our triggers off their mode.
const enableAll = `DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT DISTINCT tgrelid FROM pg_trigger WHERE tgname LIKE 'pgrunbook\_capture\_%' LOOP
	EXECUTE format('ALTER TABLE %s DISABLE TRIGGER ALL', t); EXECUTE format('ALTER TABLE %s ENABLE TRIGGER ALL', t); END LOOP; END $$`

// touched brings a migration to a cutover that ended because somebody touched the target.
func (r *rig) touched() {
	r.t.Helper()
	r.pooler()
	r.finally(untilArm...)
	r.sql(r.target, enableAll)
	if o := r.run("", applyArgs...); o.code == 0 || !strings.Contains(o.text, "was touched") {
		r.t.Fatalf("with a touched target: %s\n%s", o, o.text)
	}
}

var leavings = []walk{
	{
		what: "touched target", args: untilVerify, before: (*rig).touched, names: []string{"verify.recaptured"},
		after: func(r *rig) { r.finally(applyArgs...); r.moved(0, 1); r.writing(1); r.balance(r.target) },
	},
	{
		what: "cutover over its budget", args: applyArgs, before: (*rig).pooler, names: []string{"pooler.paused", "freeze.letgo"},
		points: "freeze.switched@1:sleep=6s;", // the budget is 5s
		after:  func(r *rig) { r.moved(0, 1); r.writing(1); r.balance(r.target) },
	},
	{
		what: "without the target", args: []string{"rollback", "--without-target", "--accept-loss", "--auto-approve"}, before: (*rig).givenUp,
		names: []string{"alone.locked", "alone.switched", "alone.repointed", "alone.opening", "alone.opened", "alone.resumed"},
		after: func(r *rig) { r.sql(r.source, probeSQL); r.balance(r.source) },
	},
}

// fallen lets the runner of a command die between the two COMMITs, and its guardian before it can end
// that: what is passed only then, by the guardian or by the next run.
func (r *rig) fallen(args ...string) {
	r.t.Helper()
	p := r.start("freeze.between:kill;freeze.resolving:kill", args...)
	if o := p.end(); o.signal == 0 || !p.passed("freeze.resolving", 1) {
		r.t.Fatalf("runner and guardian did not die: %s", o)
	}
}

// byProxy lets the program reach the source in a way that can be shut.
func (r *rig) byProxy() {
	r.t.Helper()
	if r.proxy != nil {
		return
	}
	major, _, err := testpg.PairMajors()
	r.must(err)
	r.proxy = testpg.ListenT(r.t, testpg.Shared(r.t, major))
	r.via[0] = r.proxy.URL(r.source)
}

var betweens = []walk{
	{
		what: "between", args: applyArgs, before: func(r *rig) { r.byProxy(); r.fallen(applyArgs...) }, names: []string{"freeze.resolving", "freeze.resolved", "freeze.opened"},
		after: func(r *rig) { r.moved(0, 1); r.writing(1); r.balance(r.target) },
	},
	{
		what: "between, without the source", args: []string{"finish", "--without-source", "--now", "--auto-approve"}, names: []string{"finish.opened"},
		before: func(r *rig) {
			r.byProxy()
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.turn(1)
			r.fallen(rollbackArgs...)
			r.proxy.Refuse(true)
		},
		after: func(r *rig) { r.writing(1); r.balance(r.target) },
	},
}
