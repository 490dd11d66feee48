package examples_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestMajorUpgrade walks the example from the oldest major at hand to the newest, with the rows
// loaded by the example's own script.
func TestMajorUpgrade(t *testing.T) {
	majors := []int{12}
	if testpg.Full() {
		majors = append(majors, 10)
	}
	if os.Getenv("PGRUNBOOK_SOAK") != "" {
		majors = append(majors, 11, 13, 14, 15, 16, 17)
	}
	for _, major := range majors {
		t.Run(fmt.Sprintf("%d to %d", major, newest), func(t *testing.T) { majorUpgrade(t, major) })
	}
}

var erpTraffic = []string{
	"INSERT INTO erp.customer (name, vat) VALUES ('new', 'X' || $1::int) ON CONFLICT (vat) DO NOTHING",
	"UPDATE erp.customer SET vat = 'Y' || $1::int, notes = notes || 'z'::text WHERE id = 1 + $1 % 3000",
	"INSERT INTO erp.orders (customer, weight) VALUES (1 + $1 % 3000, $1 / 3.0)",
	"UPDATE erp.orders SET state = 'paid' WHERE id = 1 + $1 % 10000",
	"DELETE FROM erp.orders WHERE id = 1 + $1 % 10000 AND id % 3 = 0", // cascades
	"UPDATE erp.order_line SET price = price + 1, item = decode(md5($1::int::text), 'hex') WHERE order_id = 1 + $1 % 9000",
	"UPDATE erp.order_line SET no = no + 10 WHERE order_id = 1 + $1 % 9000 AND no = 1", // the key changes
	"INSERT INTO erp.booking VALUES (date '2026-05-01' + $1::int % 100, $1, 'new ' || nextval('erp.ticket'))",
	"DELETE FROM erp.booking WHERE amount = $1 % 5000",
}

func majorUpgrade(t *testing.T, major int) {
	source, target := testpg.StartT(t, testpg.Options{Major: major}), testpg.StartT(t, testpg.Options{Major: newest})
	for _, c := range []*testpg.Cluster{source, target} {
		script(t, c.ConnString(), "CREATE DATABASE erp")
	}
	sourceURL, targetURL := testpg.Adopt(t, source, "erp"), testpg.Adopt(t, target, "erp")
	scriptFile(t, sourceURL, "major-upgrade/source.sql")
	w := startWriters(t, sourceURL, erpTraffic...)
	structure := schemaDump(t, sourceURL)
	before, err := testpg.Sequences(t.Context(), sourceURL)
	if err != nil {
		t.Fatal(err)
	}

	p := newProgram(t, "major-upgrade", "SOURCE_URL="+sourceURL, "TARGET_URL="+targetURL)
	p.want(0, "apply", "RUNBOOK", "--auto-approve", "--until", "capture")
	w.more() // captured, not propagated
	if out, code := p.start(filepath.Join(p.dir, "load.sh")); code != 0 {
		t.Fatalf("load.sh ended with %d:\n%s", code, out)
	}
	loaded := query(t, targetURL, "SELECT count(*)::text FROM ledger.entry")
	w.more()
	out := p.want(14, "apply", "RUNBOOK") // it waits to be told
	if mark := query(t, targetURL, "SELECT mark FROM pgrunbook.run"); !strings.Contains(out, "approve external-copy") || !strings.Contains(out, mark) {
		t.Errorf("it does not say how to load and how to go on:\n%s", out)
	}
	if now := query(t, targetURL, "SELECT count(*)::text FROM ledger.entry"); now != loaded || now == "0" {
		t.Errorf("%s ledger entries were loaded, and %s are there before anybody said go", loaded, now)
	}
	refused(t, targetURL, "INSERT INTO erp.customer (name) VALUES ('by mistake')")

	p.want(0, "apply", "RUNBOOK", "--approve", "external-copy", "--by", "dba", "--until", "verify")
	w.more()
	p.want(0, "apply", "RUNBOOK")
	w.stop()
	same(t, sourceURL, targetURL)
	w.kept(targetURL)
	refused(t, sourceURL, "DELETE FROM erp.booking")
	sequencesAhead(t, sourceURL, targetURL, before, 1000)
	w.moveTo(targetURL)
	script(t, targetURL, "INSERT INTO erp.orders (customer) VALUES (1); INSERT INTO erp.customer (name) VALUES ('after'); UPDATE erp.order_line SET price = 0 WHERE order_id = 8000")

	p.want(0, "finish", "RUNBOOK", "--auto-approve")
	nothingLeft(t, targetURL, structure)
}
