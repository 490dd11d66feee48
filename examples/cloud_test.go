package examples_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const helperFunction = `
CREATE FUNCTION public.rds_session_replication_role(role text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
  BEGIN RETURN pg_catalog.set_config('session_replication_role', role, false); END $$;
REVOKE ALL ON FUNCTION public.rds_session_replication_role(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.rds_session_replication_role(text) TO migrator`

// TestToManagedCloud walks the example with roles that are superusers nowhere, and looks for the
// password in everything that the program leaves behind.
func TestToManagedCloud(t *testing.T) {
	source := testpg.StartT(t, testpg.Options{Major: 15})
	script(t, source.ConnString(), `CREATE ROLE shop_owner; CREATE ROLE shop_app LOGIN IN ROLE shop_owner; CREATE ROLE migrator LOGIN IN ROLE shop_owner;
		GRANT SET ON PARAMETER session_replication_role TO migrator`)
	script(t, source.ConnString(), "CREATE DATABASE shop OWNER shop_owner")
	admin := testpg.Adopt(t, source, "shop")
	scriptFile(t, admin, "to-managed-cloud/source.sql")

	canary := "canary-" + random()
	target := testpg.StartT(t, testpg.Options{Major: newest, Auth: "scram", Password: "admin-" + random()})
	script(t, target.ConnString(), "CREATE ROLE app; CREATE ROLE migrator LOGIN PASSWORD '"+canary+"' IN ROLE app")
	script(t, target.ConnString(), "CREATE DATABASE shop TEMPLATE template0 OWNER migrator")
	cloudAdmin := testpg.Adopt(t, target, "shop")
	script(t, cloudAdmin, helperFunction)
	if err := target.Configure(t.Context(), map[string]string{"log_statement": "all"}); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	w := startWriters(t, source.URL("shop", "shop_app"), shopTraffic...) // a role that migrator is no member of
	script(t, admin, "REASSIGN OWNED BY shop_app TO shop_owner")
	pooled, err := pgx.Connect(t.Context(), source.URL("shop", "shop_app"))
	if err != nil {
		t.Fatal(err)
	}
	watch := watchProcesses(t, canary)
	p := newProgram(t, "to-managed-cloud", "SOURCE_URL="+source.URL("shop", "migrator"), "TARGET_URL="+target.URL("shop", "migrator"), "TOKEN_FILE="+token)
	for code, url := range map[string]string{"PRE134": cloudAdmin, "PRE126": admin} { // warnings
		granted(t, url, code, p.want(0, "plan", "RUNBOOK"))
	}
	p.want(0, "plan", "RUNBOOK", "--out", "plan.json")
	p.want(0, "show", "plan.json", "--markdown")
	p.want(0, "apply", "plan.json", "--until", "copy")
	w.more()
	before, err := testpg.Sequences(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	p.want(0, "apply", "plan.json")
	if err := pooled.Ping(t.Context()); err == nil {
		t.Error("a session of the application is still on the source after the flip")
	}
	w.stop()

	p.leftOut = []string{"shop.tmp_report", "shop.import_buffer", "shop.job_lock"}
	same(t, admin, cloudAdmin, p.leftOut...)
	w.kept(cloudAdmin)
	refused(t, admin, "DELETE FROM shop.invoice")
	if got := query(t, cloudAdmin, "SELECT concat_ws(' ', to_regclass('shop.tmp_report'), to_regclass('shop.import_buffer'), (SELECT count(*) FROM shop.job_lock))"); got != "0" {
		t.Errorf("excluded tables on the target: %q, want none, and job_lock empty", got)
	}
	if got := query(t, cloudAdmin, "SELECT string_agg(DISTINCT pg_get_userbyid(relowner), ' ') FROM pg_class WHERE relnamespace = 'shop'::regnamespace"); got != "app" {
		t.Errorf("owners on the target: %s", got)
	}
	sequencesAhead(t, admin, cloudAdmin, before, 1000)
	w.moveTo(cloudAdmin)
	w.back(p, admin, cloudAdmin, `INSERT INTO shop.page_view (page) SELECT '/cloud' FROM generate_series(1, 500); INSERT INTO shop.audit_note (note) VALUES ('cloud');
		INSERT INTO shop.customer (email) VALUES ('first@cloud.example.com'); DELETE FROM shop.invoice WHERE number % 200 = 0; INSERT INTO shop.invoice (customer, total) VALUES (1, 1)`, "DELETE FROM shop.invoice")
	sequencesAhead(t, cloudAdmin, admin, before, 1000)
	p.want(10, "apply", "plan.json") // it was reviewed for one cutover
	p.want(0, "plan", "RUNBOOK", "--out", "plan.json")
	p.want(0, "apply", "plan.json")
	same(t, admin, cloudAdmin, p.leftOut...)
	w.moveTo(cloudAdmin)

	secretAbsent(t, p, canary, "the journal", contents(t, admin, "pgrunbook")+contents(t, cloudAdmin, "pgrunbook"))
	secretAbsent(t, p, canary, "the server's log", target.Log())
	p.want(0, "status", "RUNBOOK")
	p.want(0, "finish", "RUNBOOK", "--now", "--auto-approve")
	secretAbsent(t, p, canary, "the output", p.output.String())
	for _, name := range files(t, p.dir) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		secretAbsent(t, p, canary, name, string(text))
	}
	watch()
	w.moveTo(cloudAdmin)
}

// granted runs the statement that a plan gives with a finding.
func granted(t *testing.T, url, code, plan string) {
	t.Helper()
	found := regexp.MustCompile(code + ` .*?(GRANT [^;]* TO "migrator"[^;]*;)`).FindStringSubmatch(strings.Join(strings.Fields(plan), " "))
	if found == nil {
		t.Fatalf("the plan has no %s with a statement:\n%s", code, plan)
	}
	script(t, url, found[1])
}

// shopTraffic writes to every table of the shop that goes along.
var shopTraffic = []string{
	"INSERT INTO shop.customer (email) VALUES ('n' || $1::int || '@example.com')",
	"UPDATE shop.customer SET email = 'u' || $1::int || '@example.com' WHERE id = 1 + $1 % 5000",
	"INSERT INTO shop.invoice (customer, total) VALUES (1 + $1 % 5000, 12.50)",
	"UPDATE shop.invoice SET lines = lines || '[1]', total = total + 1 WHERE number = 7000 + 10 * ($1 % 20000)",
	"DELETE FROM shop.invoice WHERE number = 7000 + 10 * ($1 % 20000)",
	"INSERT INTO shop.page_view (page, customer) VALUES ('/new', $1)",
	"INSERT INTO shop.audit_note (note) VALUES ('again')",
	"DELETE FROM shop.audit_note WHERE ctid = (SELECT min(ctid) FROM shop.audit_note)",
	"INSERT INTO shop.import_buffer VALUES (1000 + $1, 'raw')",
}

// sequencesAhead demands that no sequence hands out again what the source may have handed out.
func sequencesAhead(t *testing.T, sourceURL, targetURL string, before map[string]testpg.Sequence, margin int64) {
	t.Helper()
	source, err := testpg.Sequences(t.Context(), sourceURL)
	if err != nil {
		t.Fatal(err)
	}
	target, err := testpg.Sequences(t.Context(), targetURL)
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	for name, s := range source {
		got, ok := target[name]
		ahead := got.Last - s.Last
		if s.Last < before[name].Last {
			ahead = -ahead // it counts down
		}
		if s != before[name] {
			moved++
		}
		if !ok || ahead < margin {
			t.Errorf("sequence %s is at %+v on the target, %+v on the source: %d ahead, want at least %d", name, got, s, ahead, margin)
		}
	}
	if len(source) == 0 || moved == 0 {
		t.Errorf("%d sequences, %d of them moved while it ran", len(source), moved)
	}
}

func random() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func secretAbsent(t *testing.T, p *program, secret, where, text string) {
	t.Helper()
	if text == "" {
		t.Errorf("%s: there is nothing to look at", where)
	}
	if strings.Contains(text, secret) {
		t.Errorf("the password is in %s", where)
	}
}

// contents is a schema with all its rows, as pg_dump writes it.
func contents(t *testing.T, rawURL, schema string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	cmd := exec.CommandContext(t.Context(), filepath.Join(clients(t), "pg_dump"), "--schema="+schema, "--inserts", "-d", u.String())
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("dumping schema %s: %v", schema, err)
	}
	if !bytes.Contains(out, []byte("CREATE TABLE "+schema)) {
		t.Errorf("schema %s has no tables to look at", schema)
	}
	return string(out)
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	return names
}

// watchProcesses reads every process's arguments each 50 ms, as any user of the machine can. The
// function that it returns ends the watch. A process of its own proves that it sees.
func watchProcesses(t *testing.T, secret string) (stop func()) {
	t.Helper()
	marker := "seen-" + random()
	control := exec.Command("/bin/sleep", "0.5")
	control.Args[0] = marker
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	quit := make(chan struct{})
	var wait sync.WaitGroup
	var sawControl, sawTools atomic.Bool
	wait.Go(func() {
		for {
			paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
			for _, path := range paths {
				line, err := os.ReadFile(path)
				if err != nil {
					continue // it has ended
				}
				if bytes.Contains(line, []byte(secret)) {
					t.Errorf("the password is in the process list: %q", bytes.ReplaceAll(line, []byte{0}, []byte(" ")))
				}
				if bytes.Contains(line, []byte(marker)) {
					sawControl.Store(true)
				}
				if bytes.Contains(line, []byte("pg_dump")) || bytes.Contains(line, []byte("pg_restore")) {
					sawTools.Store(true)
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	end := sync.OnceFunc(func() { close(quit); wait.Wait() })
	t.Cleanup(end)
	if err := control.Wait(); err != nil {
		t.Fatal(err)
	}
	return func() {
		end()
		if !sawControl.Load() || !sawTools.Load() {
			t.Errorf("the watch is blind: it saw its own process %v, pg_dump or pg_restore %v", sawControl.Load(), sawTools.Load())
		}
	}
}
