package examples_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestInplaceUpgrade walks the example under pgbench: one table live, the others at the freeze, a
// person's word before the freeze, nothing left behind.
func TestInplaceUpgrade(t *testing.T) {
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	source, target := testpg.StartT(t, testpg.Options{Major: from}), testpg.StartT(t, testpg.Options{Major: to})
	for _, c := range []*testpg.Cluster{source, target} {
		script(t, c.ConnString(), "CREATE DATABASE alpha")
	}
	sourceURL, targetURL := testpg.Adopt(t, source, "alpha"), testpg.Adopt(t, target, "alpha")
	initPgbench(t, sourceURL, "1")
	script(t, sourceURL, "CREATE ROLE teller; GRANT SELECT, UPDATE ON pgbench_tellers TO teller")
	w := startWriters(t, sourceURL, "UPDATE pgbench_accounts SET filler = $1::int::text WHERE aid = 1 + $1 % 100000",
		"DELETE FROM pgbench_accounts WHERE aid = 1 + $1 % 100000 AND aid % 7 = 0",
		"INSERT INTO pgbench_accounts VALUES (100001 + $1, 1, 0, 'new') ON CONFLICT (aid) DO UPDATE SET abalance = pgbench_accounts.abalance + 1")
	stopBench := pgbench(t, sourceURL, "-n", "-c", "2", "-R", "150", "-T", "600")
	structure := schemaDump(t, sourceURL)

	p := newProgram(t, "inplace-upgrade", "SOURCE_URL="+sourceURL, "TARGET_URL="+targetURL)
	p.want(0, "plan", "RUNBOOK")
	p.want(14, "apply", "RUNBOOK") // nobody is there to say yes
	p.want(0, "apply", "RUNBOOK", "--auto-approve", "--until", "copy")
	w.more()
	if n := query(t, targetURL, "SELECT count(*)::text FROM pgbench_tellers"); n != "0" {
		t.Errorf("the small tables are over before the freeze: %s tellers", n)
	}
	p.want(0, "apply", "RUNBOOK", "--until", "verify")
	p.want(14, "apply", "RUNBOOK") // warm; the cutover waits for a person
	oneMoreRound(t, p, w, sourceURL, targetURL)
	w.more()

	p.want(4, "approve", "downtimes", "RUNBOOK", "--by", "dba")
	p.want(0, "approve", "downtime", "RUNBOOK", "--by", "dba")
	p.want(0, "apply", "RUNBOOK")
	w.stop()
	stopBench()
	same(t, sourceURL, targetURL)
	w.kept(targetURL)
	refused(t, sourceURL, "UPDATE pgbench_tellers SET tbalance = 0")
	pointed(t, p, "5566")
	if n := query(t, targetURL, "SELECT (count(*) > 100)::text FROM pgbench_history"); n != "true" {
		t.Error("pgbench wrote next to nothing")
	}
	w.moveTo(targetURL)

	typed(t, p.want(14, "rollback", "RUNBOOK", "--auto-approve"), "pgrunbook rollback --approve back --by WHO", "Next: pgrunbook approve back --by WHO, then pgrunbook rollback "+p.runbook)
	w.back(p, sourceURL, targetURL, `UPDATE pgbench_tellers SET tbalance = tbalance + 1; DELETE FROM pgbench_history WHERE ctid IN (SELECT ctid FROM pgbench_history LIMIT 10);
		UPDATE pgbench_accounts SET abalance = 7 WHERE aid < 500; DELETE FROM pgbench_accounts WHERE aid BETWEEN 600 AND 700`, "UPDATE pgbench_tellers SET tbalance = 0", "--approve", "back", "--by", "dba")
	pointed(t, p, "5555")
	p.want(0, "apply", "RUNBOOK", "--approve", "downtime", "--by", "dba")
	same(t, sourceURL, targetURL)
	pointed(t, p, "5566")
	w.moveTo(targetURL)

	p.want(1, "finish", "RUNBOOK", "--auto-approve") // keep_for
	typed(t, p.want(14, "finish", "RUNBOOK", "--now", "--auto-approve"), "pgrunbook finish --now --approve farewell --by WHO", "Next: pgrunbook approve farewell --by WHO, then the same command")
	p.want(4, "finish", "RUNBOOK", "--now", "--auto-approve", "--approve", "farewell")
	p.want(0, "finish", "RUNBOOK", "--now", "--auto-approve", "--approve", "farewell", "--by", "dba")
	nothingLeft(t, targetURL, structure)
	onlyTheGate(t, sourceURL, structure)
	refused(t, sourceURL, "UPDATE pgbench_tellers SET tbalance = 0")
	w.moveTo(targetURL)
}

// typed demands that a command says what to type.
func typed(t *testing.T, out string, lines ...string) {
	t.Helper()
	out = strings.Join(strings.Fields(out), " ")
	for _, line := range lines {
		if !strings.Contains(out, line) {
			t.Errorf("%q is not said in:\n%s", line, out)
		}
	}
}

// pointed demands that the switch step, or its undo, pointed the application to a port.
func pointed(t *testing.T, p *program, port string) {
	t.Helper()
	conf, err := os.ReadFile(filepath.Join(p.dir, "application.conf"))
	if err != nil || !strings.Contains(string(conf), "port="+port) {
		t.Errorf("the application is pointed to %q (%v), want port %s", conf, err, port)
	}
}

// oneMoreRound proves that repeating catch_up carries what was written since: "kick and wait".
func oneMoreRound(t *testing.T, p *program, w *writers, sourceURL, targetURL string) {
	t.Helper()
	w.more()
	script(t, sourceURL, "INSERT INTO pgbench_accounts VALUES (2000001, 1, 42, 'kick')")
	p.want(0, "apply", "RUNBOOK", "--until", "catch_up")
	if n := query(t, targetURL, "SELECT count(*)::text FROM pgbench_accounts WHERE aid = 2000001 AND abalance = 42"); n != "1" {
		t.Errorf("one more round carried %s of 1 rows", n)
	}
}

// nothingLeft demands that a database is defined as it was: no schema, trigger or setting of ours.
func nothingLeft(t *testing.T, url, structure string) {
	t.Helper()
	if now := schemaDump(t, url); now != structure {
		t.Errorf("the definitions differ:\n%s", firstDifference(structure, now))
	}
	left := query(t, url, `SELECT coalesce(string_agg(what, ', '), '') FROM (
		SELECT 'schema ' || nspname AS what FROM pg_namespace WHERE nspname ~ 'pgrunbook'
		UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname ~ 'pgrunbook'
		UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname ~ 'pgrunbook'
		UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
		UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname ~ 'pgrunbook'
		UNION ALL SELECT 'setting ' || array_to_string(setconfig, ' ') FROM pg_db_role_setting
		UNION ALL SELECT 'session ' || application_name FROM pg_stat_activity WHERE application_name ~ 'pgrunbook') x`)
	if left != "" {
		t.Errorf("left on the new server: %s", left)
	}
}

// onlyTheGate demands that the old side has its closed gate and nothing else of ours.
func onlyTheGate(t *testing.T, url, structure string) {
	t.Helper()
	if now := withoutGates(schemaDump(t, url, "pgrunbook")); now != structure {
		t.Errorf("the definitions of the source differ:\n%s", firstDifference(structure, now))
	}
	open := query(t, url, `SELECT coalesce(string_agg(c.oid::regclass::text, ', '), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND n.nspname IN ('public', 'ledger')
		  AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = '!pgrunbook_gate' AND g.tgenabled = 'A')`)
	if open != "" {
		t.Errorf("without a gate on the old server: %s", open)
	}
	ours := query(t, url, `SELECT coalesce(string_agg(x.what, ', ' ORDER BY x.what), '') FROM (
		SELECT c.relname::text AS what FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgrunbook' AND c.relkind <> 'i'
		UNION ALL SELECT p.proname || '()' FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'pgrunbook') x`)
	if ours != "gate(), gate_flag, refused" {
		t.Errorf("the old server keeps in our schema: %s", ours)
	}
	if flag := query(t, url, "SELECT (last_value <> 0)::text FROM pgrunbook.gate_flag"); flag != "true" {
		t.Error("the old server's gate is open")
	}
}

// blocks of a SchemaDump begin with their header.
var blocks = regexp.MustCompile(`\n\n-- Name: `)

func withoutGates(dump string) string {
	var kept []string
	for i, block := range blocks.Split(strings.TrimSuffix(dump, "\n"), -1) {
		if i > 0 {
			block = "-- Name: " + block
		}
		if !strings.Contains(block, "!pgrunbook_gate") {
			kept = append(kept, block)
		}
	}
	return strings.Join(kept, "\n\n") + "\n"
}

// firstDifference shows where two texts part.
func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return "want: " + strings.Join(a[i:min(i+8, len(a))], "\n      ") + "\ngot:  " + strings.Join(b[i:min(i+8, len(b))], "\n      ")
		}
	}
	return "one ends before the other: " + strings.Join(append(a[min(len(a), len(b)):], b[min(len(a), len(b)):]...), "\n")
}
