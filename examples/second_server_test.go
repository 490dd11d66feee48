package examples_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

var stockTraffic = []string{
	"UPDATE shop.article SET stock = stock + 1 WHERE id = 1 + $1 % 5000", // fires a trigger
	"INSERT INTO shop.article VALUES (5001 + $1, 'N' || $1::int)",
	"UPDATE shop.article SET code = 'C' || $1::int WHERE id = 1 + $1 % 5000",
	"INSERT INTO shop.price VALUES (1 + $1 % 5000, date '2027-01-01' + $1::int % 300, 1) ON CONFLICT (article, since) DO UPDATE SET net = shop.price.net + 1",
	"DELETE FROM shop.price WHERE article = 1 + $1 % 5000 AND since < '2026-01-02'",
	"INSERT INTO shop.movement VALUES (1, 1, 'same'), (1, 1, 'same')",
	"DELETE FROM shop.movement WHERE ctid = (SELECT min(ctid) FROM shop.movement)",
}

// TestSecondServer keeps a target near a source that is never held, and compares when the writers
// rest.
func TestSecondServer(t *testing.T) {
	source, target := testpg.StartT(t, testpg.Options{Major: newest}), testpg.StartT(t, testpg.Options{Major: newest})
	for _, c := range []*testpg.Cluster{source, target} {
		script(t, c.ConnString(), "CREATE DATABASE shop")
	}
	sourceURL, targetURL := testpg.Adopt(t, source, "shop"), testpg.Adopt(t, target, "shop")
	scriptFile(t, sourceURL, "second-server/source.sql")
	w := startWriters(t, sourceURL, stockTraffic...)
	structure := schemaDump(t, sourceURL)

	p := newProgram(t, "second-server", "SOURCE_URL="+sourceURL, "TARGET_URL="+targetURL)
	p.want(0, "apply", "RUNBOOK", "--auto-approve", "--until", "schema")
	if got := query(t, targetURL, "SELECT count(*) || ' ' || (SELECT count(*) FROM shop.article) FROM pg_roles WHERE rolname LIKE 'shop_%'"); got != "2 0" {
		t.Errorf("roles and articles after the schema: %s, want 2 0", got)
	}
	p.want(0, "apply", "RUNBOOK", "--until", "capture")
	w.more() // logged, not sent
	p.want(0, "apply", "RUNBOOK", "--until", "copy")
	w.more()
	p.want(0, "apply", "RUNBOOK", "--until", "catch_up")
	p.want(0, "apply", "RUNBOOK") // constraints and the comparison
	for range 3 {
		w.more()
		p.want(0, "apply", "RUNBOOK", "--until", "catch_up", "-q")
	}
	refused(t, targetURL, "DELETE FROM shop.price")

	w.stop()
	p.want(0, "apply", "RUNBOOK")
	same(t, sourceURL, targetURL)
	w.kept(sourceURL)
	w.kept(targetURL)
	w.moveTo(sourceURL) // it was never closed

	p.want(0, "apply", "RUNBOOK", "--until", "catch_up")
	same(t, sourceURL, targetURL)
	cutoverAfterAll(t, p, w, sourceURL, targetURL)
	nothingLeft(t, targetURL, structure)
}

// cutoverAfterAll switches the cutover on in the runbook: the same run goes on.
func cutoverAfterAll(t *testing.T, p *program, w *writers, sourceURL, targetURL string) {
	t.Helper()
	path := filepath.Join(p.dir, p.runbook)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "cutover { enabled = false }", "cutover {}", 1)
	if changed == string(text) {
		t.Fatal("the runbook has no cutover to switch on")
	}
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	p.want(0, "apply", "RUNBOOK", "--auto-approve")
	same(t, sourceURL, targetURL)
	refused(t, sourceURL, "DELETE FROM shop.price")
	w.moveTo(targetURL)
	p.want(0, "finish", "RUNBOOK", "--auto-approve")
}
