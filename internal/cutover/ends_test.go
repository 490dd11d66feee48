package cutover_test

import (
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// dump is every definition of a database.
func (r *rig) dump(url string) string {
	r.t.Helper()
	text, err := testpg.SchemaDump(r.t.Context(), url)
	r.must(err)
	return text
}

func firstDifference(a, b string) string {
	one, two := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(one), len(two)) {
		if one[i] != two[i] {
			return "- " + one[i] + "\n+ " + two[i]
		}
	}
	return "one is longer"
}

// settings are what a dump of one database leaves out: its own grants and settings, those of its
// roles, and of each table the trigger modes, storage options and statistics targets.
const settings = `
SELECT concat_ws(E'\n',
  (SELECT 'database ' || concat(datacl, datconnlimit, datallowconn) FROM pg_database WHERE datname = current_database()),
  (SELECT string_agg(concat_ws(' ', setrole, setconfig), ' ' ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
  (SELECT string_agg(concat_ws(' ', oid, relname, relacl, reloptions, relfilenode), E'\n' ORDER BY oid) FROM pg_class WHERE relnamespace IN ('app'::regnamespace, 'ledger'::regnamespace)),
  (SELECT string_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled), E'\n' ORDER BY oid) FROM pg_trigger),
  (SELECT string_agg(concat_ws(' ', nspname, nspacl), E'\n' ORDER BY oid) FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast_temp)'),
  (SELECT string_agg(concat_ws(' ', defaclrole, defaclnamespace, defaclacl), E'\n' ORDER BY oid) FROM pg_default_acl),
  (SELECT string_agg(concat_ws(' ', proname, proacl), E'\n' ORDER BY oid) FROM pg_proc WHERE oid >= 16384),
  (SELECT string_agg(concat(evtname, evtenabled), ' ') FROM pg_event_trigger),
  (SELECT string_agg(slot_name::text, ' ') FROM pg_replication_slots), (SELECT string_agg(pubname::text, ' ') FROM pg_publication))`

// TestF84F85AbortLeavesNoTrace: given up after any step before the flip, the source is exactly as it was
// found and the target is as empty as before; also when abort itself is killed at each of its boundaries.
func TestF84F85AbortLeavesNoTrace(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.sql(r.source, `GRANT SELECT ON app.item TO PUBLIC; ALTER TABLE app.part SET (autovacuum_vacuum_scale_factor = 0.4)`)
	schema, set := r.dump(r.source), r.ask(r.source, settings)
	empty := r.dump(r.target)
	for _, c := range []struct {
		until, point string
		short        bool // in the short form too
	}{
		{"schema", "", false},
		{"capture", "", true},
		{"", "load.claimed@2", true},
		{"catch_up", "", false},
		{"verify", "", false},
		{"", "gate.armed@4", false},
		{"arm", "", true},
		{"", "freeze.held", false},
		{"", "freeze.decided", true},
	} {
		if !soak() && !c.short {
			continue
		}
		if c.point == "" {
			r.want(0, "apply", "-y", "--until", c.until)
		} else if o := r.start(c.point+":kill", "apply", "-y").end(); o.signal != syscall.SIGKILL {
			t.Fatalf("it did not die at %s\n%s", c.point, o.text)
		}
		r.writing(onSource)
		args := []string{"abort", "-y", "--drop-target"}
		for _, point := range []string{"abort.disarmed", "gate.untriggered", "gate.removed", "capture.dropped", "abort.source", "abort.schema", "abort.target"} {
			if c.until == "arm" {
				r.killedAt(point, args...)
				r.writing(onSource)
				if point == "capture.dropped" {
					r.says(r.want(0, "status"), "pgrunbook abort --drop-target, which was begun")
					for _, command := range [][]string{{"apply", "-y"}, {"verify"}, {"rehearse"}} {
						r.says(r.want(10, command...), "an abort has begun", "pgrunbook abort --drop-target")
					}
				}
			}
		}
		r.want(0, args...)
		if now := r.dump(r.source); now != schema {
			t.Errorf("aborted at %s%s, the source differs:\n%s", c.until, c.point, firstDifference(schema, now))
		}
		if now := r.ask(r.source, settings); now != set {
			t.Errorf("aborted at %s%s, the source's settings differ:\n%s", c.until, c.point, firstDifference(set, now))
		}
		r.sql(r.target, "DROP SCHEMA pgrunbook CASCADE") // the journal of the aborted run
		if now := r.dump(r.target); now != empty {
			t.Errorf("aborted at %s%s, the target differs:\n%s", c.until, c.point, firstDifference(empty, now))
		}
		r.writing(onSource)
	}
	r.want(0, "apply", "-y") // and a new run has a clean way
	r.writing(onTarget)
	r.same()
	r.says(r.want(1, "abort", "-y"), "the target takes writes", "pgrunbook rollback")
	r.writing(onTarget)
	r.balance(r.target)
}

// ours lists what is left of us in a database.
const ours = `
SELECT coalesce(string_agg(what, ' ' ORDER BY what), '') FROM (
  SELECT 'schema ' || nspname AS what FROM pg_namespace WHERE nspname = 'pgrunbook'
  UNION ALL SELECT DISTINCT 'trigger ' || tgname FROM pg_trigger WHERE tgname LIKE '%pgrunbook%'
  UNION ALL SELECT CASE relkind WHEN 'S' THEN 'sequence ' ELSE 'relation ' END || relname FROM pg_class WHERE relnamespace = to_regnamespace('pgrunbook')
  UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = to_regnamespace('pgrunbook')) x`

// counted is how many objects a database has of ours: those of ours, each trigger once a table.
const counted = `
SELECT ((SELECT count(*) FROM pg_namespace WHERE nspname = 'pgrunbook') + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%pgrunbook%')
      + (SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('pgrunbook') AND relkind IN ('r', 'p', 'S', 'v'))
      + (SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace('pgrunbook')))::text`

var listedCount = regexp.MustCompile(` on (\d+) tables?$|(\d+) times `)

// listed adds up the objects of a side that finish --check names.
func (r *rig) listed(text, side string) string {
	n := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, side+"  ") || strings.Contains(line, "PostgreSQL ") || strings.Contains(line, "setting ") || strings.Contains(line, "nothing of ours") {
			continue
		}
		m := listedCount.FindStringSubmatch(line)
		if m == nil {
			n++
			continue
		}
		more, err := strconv.Atoi(m[1] + m[2])
		r.must(err)
		n += more
	}
	return strconv.Itoa(n)
}

// TestF84FinishKilled: finish is killed at each of its boundaries and repeated; it leaves nothing on
// the target and the closed gate on the source, and --check says just that.
func TestF84FinishKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	schema := r.dump(r.source)
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	check := r.want(0, "finish", "--check", "--now")
	r.says(check, "from the source all but the closed gate", "target drop table pgrunbook.flip", "target drop schema pgrunbook", "source stays: function pgrunbook.gate()",
		"source stays: sequence pgrunbook.gate_flag", "source stays: sequence pgrunbook.refused", "source stays: schema pgrunbook", "source stays: setting default_transaction_read_only=on")
	gated := r.ask(r.source, "SELECT count(*)::text FROM pg_trigger WHERE tgname = '!pgrunbook_gate'")
	r.says(check, "source stays: trigger !pgrunbook_gate on "+gated+" tables", "target drop trigger !pgrunbook_gate on ")
	for _, side := range []struct{ name, url string }{{"source", r.source}, {"target", r.target}} {
		if listed := r.listed(check, side.name); listed != r.ask(side.url, counted) {
			t.Errorf("--check lists %s objects of the %s, which has %s:\n%s", listed, side.name, r.ask(side.url, counted), check)
		}
	}
	r.writing(onTarget)
	r.says(r.want(0, "finish", "--check"), "NOT READY", `rollback { keep_for = "1h0m0s" }`, "pgrunbook finish --now")
	r.says(r.want(1, "finish", "-y"), `rollback { keep_for = "1h0m0s" }`, "pgrunbook finish --now")
	args := []string{"finish", "-y", "--now"}
	var out string // of the run that came to the end of its only step
	for _, point := range []string{"gate.untriggered", "gate.removed", "finish.target", "finish.walked"} {
		o := r.start(point+":kill", args...).end()
		if out = o.text; o.signal != syscall.SIGKILL {
			t.Fatalf("finish did not die at %s\n%s", point, o.text)
		}
		r.writing(onTarget)
		r.refused(r.source, "25006")
	}
	r.want(0, args...)
	r.writing(onTarget)
	if left := r.ask(r.target, ours); left != "" {
		t.Errorf("left on the target: %s", left)
	}
	if left := r.ask(r.source, ours); left != "function gate schema pgrunbook sequence gate_flag sequence refused trigger !pgrunbook_gate" {
		t.Errorf("left on the source: %s", left)
	}
	r.refused(r.source, "25006")
	after := r.want(0, "finish", "--check")
	r.says(after, "is finished.", "target nothing of ours", "source trigger !pgrunbook_gate on "+gated+" tables", "DROP SCHEMA pgrunbook CASCADE")
	if listed := r.listed(after, "source"); listed != r.ask(r.source, counted) || strings.Contains(after, "capture") {
		t.Errorf("after finish --check lists:\n%s", after)
	}
	r.says(r.want(1, "verify"), "run ", " is finished: no run on this target", "Nothing is to be done: pgrunbook status")
	r.says(r.want(0, "finish", "-y", "--now"), "finished already") // as after one that died at its last line
	// The line that it prints is typed as it stands.
	_, line, found := strings.Cut(strings.Join(strings.Fields(out), " "), "which nothing carries over: ")
	if !found {
		t.Fatalf("finish does not say how to take the gate off:\n%s", out)
	}
	line, _, _ = strings.Cut(line, "; COMMIT")
	r.sql(r.source, line+"; COMMIT")
	if now := r.dump(r.source); now != schema {
		t.Errorf("without its gate the source differs:\n%s", firstDifference(schema, now))
	}
	r.sql(r.source, "INSERT INTO app.bag VALUES (1, 'writable')")
	r.says(r.want(0, "finish", "--check"), "target nothing of ours", "source nothing of ours", "Next: nothing")
	r.balance(r.target)
}
