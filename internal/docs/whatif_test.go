package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

var checked = regexp.MustCompile("(?s)```sql check=([a-z-]+)\n(.*?)```")

// lines are the psql lines of docs/what-if.md by name, with a note of those that a test has run.
type lines struct {
	mu   sync.Mutex
	text map[string]string
	ran  map[string]bool
}

func whatIf(t *testing.T) *lines {
	t.Helper()
	l := &lines{text: map[string]string{}, ran: map[string]bool{}}
	for _, m := range checked.FindAllStringSubmatch(read(t, root+"/docs/what-if.md"), -1) {
		if l.text[m[1]] != "" {
			t.Errorf("docs/what-if.md has two blocks %s", m[1])
		}
		l.text[m[1]] = m[2]
	}
	return l
}

// of gives the lines of a name; the test demands at its end that each name was asked for.
func (l *lines) of(t *testing.T, name string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text[name] == "" {
		t.Fatalf("docs/what-if.md has no block %s", name)
	}
	l.ran[name] = true
	return l.text[name]
}

// TestWhatIf brings real servers into each state and runs the page's psql lines there.
func TestWhatIf(t *testing.T) {
	l := whatIf(t)
	t.Run("walk", func(t *testing.T) { walk(t, l) })
	t.Run("give up", func(t *testing.T) { giveUp(t, l) })
	t.Run("pooler", func(t *testing.T) { pooler(t, l) })
	for name := range l.text {
		if !l.ran[name] {
			t.Errorf("no test runs block %s of docs/what-if.md", name)
		}
	}
}

const write = "UPDATE shop.customer SET name = name || '.' WHERE id = 7"

// takes demands that a side takes a write.
func (p *pair) takes(url, when string) {
	p.t.Helper()
	if err := p.try(url, "SET statement_timeout = '20s'; "+write); err != nil {
		p.t.Errorf("%s: a write failed: %v", when, err)
	}
}

// refuses demands an SQLSTATE. The session is one that ignores the database's read-only default.
func (p *pair) refuses(url, state, when string) {
	p.t.Helper()
	if got := sqlState(p.try(url, "SET default_transaction_read_only = off; "+write)); got != state {
		p.t.Errorf("%s: a write ended with SQLSTATE %q, want %s", when, got, state)
	}
}

// dies runs apply and demands that it is killed there.
func (p *pair) dies(points string, args ...string) {
	p.t.Helper()
	if out, code := p.run([]string{"PGRUNBOOK_FAILPOINTS=" + points}, append([]string{"apply", p.file}, args...)...); code != -1 {
		p.t.Fatalf("with %s apply ended with %d:\n%s", points, code, out)
	}
}

func (p *pair) gates(l *lines, source, target string) {
	p.t.Helper()
	for url, want := range map[string]string{p.sourceURL: source, p.targetURL: target} {
		if got := p.psql(url, l.of(p.t, "who-writes")); got != want {
			p.t.Errorf("who-writes says %q, want %q", got, want)
		}
	}
}

// walk is one migration with every failure on its way.
func walk(t *testing.T, l *lines) {
	p := newPair(t, dyingProgram, "cutover {\n", "cutover {\n  after {\n    step \"exec\" \"tell\" { command = [\"/bin/sh\", \"-c\", \"test -e told\"] }\n  }\n")
	p.sql(p.sourceURL, "CREATE FUNCTION shop.still() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER still ON ddl_command_end EXECUTE PROCEDURE shop.still()")
	p.sql(p.sourceURL, "ALTER TABLE shop.invoice_item ADD CONSTRAINT few CHECK (line < 1000) NOT VALID")
	p.sql(p.sourceURL, "CREATE SCHEMA pgrunbook; COMMENT ON SCHEMA pgrunbook IS 'pgrunbook run abc'; CREATE SEQUENCE pgrunbook.gate_flag")
	if out := p.want(13, "apply", p.file, "--auto-approve", "--until", "capture"); !strings.Contains(out, "PRE105") {
		t.Errorf("preflight refused and did not say why:\n%s", out)
	}
	p.sql(p.sourceURL, "DROP SCHEMA pgrunbook CASCADE")
	p.want(0, "apply", p.file, "--auto-approve", "--until", "capture")

	p.sql(p.sourceURL, "ALTER TABLE shop.customer RENAME COLUMN id TO ident")
	if got := sqlState(p.try(p.sourceURL, "UPDATE shop.customer SET name = 'x' WHERE ident = 7")); got != "42703" {
		t.Errorf("with a renamed key a write ended with %q, want 42703", got)
	}
	p.psql(p.sourceURL, l.of(t, "rename-back"))
	p.takes(p.sourceURL, "with the key's old name")

	p.dies("load.copied@1:kill")
	p.takes(p.sourceURL, "after a death in the copy")
	p.want(0, "apply", p.file, "--until", "verify")

	p.want(14, "apply", p.file)
	p.psql(p.targetURL, l.of(t, "approve"))
	p.want(0, "apply", p.file, "--until", "arm")
	p.gates(l, "open", "closed")

	p.psql(p.targetURL, l.of(t, "pause"))
	if out := p.want(0, "status", p.file); !strings.Contains(out, "paused   by anna") {
		t.Errorf("status says of a paused run:\n%s", out)
	}
	p.want(0, "unpause", p.file)

	closedByHand(p, l, p.sourceURL, "source")
	stopped(t, p, l)
	p.takes(p.sourceURL, "after a runner that stood still in the hold")
	p.gates(l, "open", "closed")

	p.dies("freeze.between@1:kill;freeze.resolving@1:kill") // the second is the guardian's
	p.gates(l, "closed", "closed")
	p.refuses(p.sourceURL, "25006", "between the COMMITs, source")
	p.refuses(p.targetURL, "25006", "between the COMMITs, target")
	p.psql(p.targetURL, l.of(t, "finish-flip"))
	p.takes(p.targetURL, "once the target is opened by hand")
	p.gates(l, "closed", "open")
	const modes = "SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = 'still' UNION ALL SELECT conname::text FROM pg_constraint WHERE conname = 'few'"
	if got := p.list(p.targetURL, modes); !slices.Equal(got, []string{"D"}) {
		t.Errorf("a target that is opened by hand has %q of what a program does as it opens it", got)
	}
	if out := p.want(1, "apply", p.file); !strings.Contains(out, "tell") {
		t.Errorf("a step after the flip failed and is not named:\n%s", out)
	}
	if got := p.list(p.targetURL, modes); !slices.Equal(got, []string{"O", "few"}) {
		t.Errorf("after apply the target has %q of that", got)
	}
	if out := p.want(0, "status", p.file); !strings.HasPrefix(out, "The target takes writes") {
		t.Errorf("with a step after the flip that failed status says:\n%s", out)
	}
	p.takes(p.targetURL, "with a step after the flip that failed")
	if err := os.WriteFile(filepath.Join(p.dir, "told"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.want(0, "apply", p.file)

	twoSides(t, p, l)
	thereAndBack(t, p, l)

	p.want(0, "finish", p.file, "--now", "--auto-approve")
	p.refuses(p.sourceURL, "25006", "after finish")
	for _, say := range []string{"is finished; the source is closed", "writes refused", "DROP SCHEMA pgrunbook CASCADE"} {
		if out := p.want(0, "status", p.file); !strings.Contains(out, say) {
			t.Errorf("after finish status does not say %q:\n%s", say, out)
		}
	}
	p.psql(p.sourceURL, l.of(t, "remove-source-gate"))
	p.takes(p.sourceURL, "without its gate")
}

// twoSides opens the source by hand after the flip, and closes it again.
func twoSides(t *testing.T, p *pair, l *lines) {
	p.refuses(p.sourceURL, "25006", "after the flip")
	p.psql(p.sourceURL, l.of(t, "open-source"))
	p.takes(p.sourceURL, "when the target was given up")
	p.takes(p.targetURL, "with two sides open")
	if out, code := p.run(nil, "rollback", p.file, "--auto-approve"); code != 15 {
		t.Errorf("rollback between two writable sides ended with %d:\n%s", code, out)
	}
	if out := p.want(0, "status", p.file); !strings.HasPrefix(out, "Who may write is UNCLEAR") || !strings.Contains(out, "this target was given up") {
		t.Errorf("with two writable sides status says:\n%s", out)
	}
	p.psql(p.targetURL, l.of(t, "close-source"))
	p.gates(l, "open", "closed")
	if words := strings.Join(strings.Fields(p.want(0, "status", p.file)), " "); !strings.HasPrefix(words, "Who may write is UNCLEAR") || !strings.Contains(words, "the source takes writes: its gate is open") || !strings.Contains(words, "Never open the target beside it") || strings.Contains(words, "RESTART 0") {
		t.Errorf("with the source open and the target closed, both by hand, status says:\n%s", words)
	}
	p.psql(p.targetURL, l.of(t, "open-again"))
	p.psql(p.sourceURL, l.of(t, "close-source"))
	p.refuses(p.sourceURL, "25006", "closed by hand")
	p.takes(p.targetURL, "with the source closed by hand")
	if out, code := p.run(nil, "follow", p.file); code != 15 || !strings.Contains(out, "the source took 1 change after the flip") {
		t.Errorf("follow over writes of the source ended with %d:\n%s", code, out)
	}
	p.psql(p.sourceURL, l.of(t, "forget-strays"))
	closedByHand(p, l, p.targetURL, "target")
}

// closedByHand closes the side that takes writes, and opens it as status says.
func closedByHand(p *pair, l *lines, url, side string) {
	p.t.Helper()
	p.psql(url, l.of(p.t, "close-source"))
	p.gates(l, "closed", "closed")
	out := p.want(0, "status", p.file)
	if words := strings.Join(strings.Fields(out), " "); !strings.HasPrefix(out, "Who may write is UNCLEAR") || !strings.Contains(words, "by the journal the "+side+" does") || !strings.Contains(words, "who closed the "+side) {
		p.t.Errorf("with both sides closed by hand status says:\n%s", out)
	}
	p.psql(url, l.of(p.t, "open-again"))
	p.takes(url, "opened again")
	if out := p.want(0, "status", p.file); !strings.HasPrefix(out, "The "+side+" takes writes") {
		p.t.Errorf("once the %s is open again status says:\n%s", side, out)
	}
}

// thereAndBack dies in follow and between the two COMMITs of a rollback, and goes to the target again.
func thereAndBack(t *testing.T, p *pair, l *lines) {
	if got := p.psql(p.sourceURL, l.of(t, "carried-back")); got != "" {
		t.Errorf("before the first reverse pass carried-back says %q", got)
	}
	if got := p.psql(p.targetURL, l.of(t, "pending-back")); got == "0" || got == "" {
		t.Errorf("with writes on the target pending-back says %q", got)
	}
	kill := []string{"PGRUNBOOK_FAILPOINTS=pass.committed@1:kill"}
	if out, code := p.run(kill, "follow", p.file); code != -1 {
		t.Fatalf("follow was not killed, it ended with %d:\n%s", code, out)
	}
	p.takes(p.targetURL, "after a death in follow")
	p.refuses(p.sourceURL, "25006", "after a death in follow")
	if got := p.psql(p.sourceURL, l.of(t, "carried-back")); got == "" {
		t.Error("after a reverse pass carried-back says nothing")
	}
	kill = []string{"PGRUNBOOK_FAILPOINTS=freeze.between@1:kill;freeze.resolving@1:kill"}
	dies := func() {
		t.Helper()
		if out, code := p.run(kill, "rollback", p.file, "--auto-approve"); code != -1 {
			t.Fatalf("rollback was not killed, it ended with %d:\n%s", code, out)
		}
		p.gates(l, "closed", "closed")
	}
	dies()
	p.psql(p.targetURL, l.of(t, "finish-flip-alone"))
	p.takes(p.targetURL, "when it was opened without the source")
	p.gates(l, "closed", "open")
	dies()
	p.psql(p.sourceURL, l.of(t, "finish-flip-back"))
	p.takes(p.sourceURL, "once the source is opened by hand")
	p.psql(p.targetURL, l.of(t, "settle-flip-back"))
	p.refuses(p.targetURL, "25006", "after the way back")
	p.gates(l, "open", "closed")
	p.want(0, "rollback", p.file, "--auto-approve")
	again(t, p, l)
	standby(t, p, l)
	p.takes(p.targetURL, "after the last cutover")
}

// giveUp leaves by hand before the flip, with the target gone: the source is what it was.
func giveUp(t *testing.T, l *lines) {
	p := newPair(t, plainProgram)
	before, err := testpg.SchemaDump(t.Context(), p.sourceURL)
	if err != nil {
		t.Fatal(err)
	}
	p.want(0, "apply", p.file, "--auto-approve", "--until", "arm", "--approve", "go", "--by", "anna")
	keys := `SELECT sum((xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM pgrunbook.' || quote_ident(relname), false, true, '')))[1]::text::int)::text
  FROM pg_class WHERE relnamespace = 'pgrunbook'::regnamespace AND relkind = 'r' AND relname LIKE 'delta%'`
	p.takes(p.sourceURL, "captured")
	if got := p.list(p.sourceURL, keys); slices.Equal(got, []string{"0"}) {
		t.Error("no key was captured")
	}
	p.psql(p.sourceURL, l.of(t, "silence"))
	was := p.list(p.sourceURL, keys)
	p.takes(p.sourceURL, "with silent triggers")
	if got := p.list(p.sourceURL, keys); !slices.Equal(got, was) {
		t.Errorf("silent triggers wrote keys: %s before, %s after", was, got)
	}
	p.psql(p.sourceURL, l.of(t, "remove"))
	p.sql(p.targetURL, "ALTER DATABASE shop SET default_transaction_read_only = on") // as a rollback leaves it
	p.psql(p.targetURL, l.of(t, "remove"))
	p.psql(p.targetURL, l.of(t, "writable-again"))
	p.takes(p.targetURL, "after the removal from a target that was closed once")
	p.takes(p.sourceURL, "after the removal")
	after, err := testpg.SchemaDump(t.Context(), p.sourceURL)
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Error("the source is not what it was")
	}
}

// pooler resumes what was left paused.
func pooler(t *testing.T, l *lines) {
	major, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	url := testpg.NewDB(t, testpg.Shared(t, major))
	b := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"shop": url}})
	p := &pair{t: t, clients: clients(t, major), env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}}
	console := b.Console(testpg.BouncerAdmin)
	paused := func() string {
		fields := strings.Split(p.psql(console, "\\t off\n\\pset footer off\nSHOW DATABASES;"), "\n")
		column := slices.Index(strings.Split(fields[0], "|"), "paused")
		for _, row := range fields[1:] {
			if v := strings.Split(row, "|"); v[0] == "shop" {
				return v[column]
			}
		}
		return ""
	}
	p.psql(console, "PAUSE shop;")
	if paused() != "1" {
		t.Errorf("after PAUSE the console says paused = %q", paused())
	}
	p.psql(console, l.of(t, "resume"))
	if paused() != "0" {
		t.Errorf("after the block the console says paused = %q", paused())
	}
	if got := p.psql(b.URL("shop", "postgres"), "SELECT 1;"); got != "1" {
		t.Errorf("through the resumed pooler: %q", got)
	}
	// Its entry leads to a database that is not the one, and clients wait.
	entries := read(t, b.DatabasesFile)
	other := testpg.NewDB(t, testpg.Shared(t, major))
	astray, err := testpg.BouncerEntry("shop", other)
	if err != nil {
		t.Fatal(err)
	}
	where := func() string { return p.psql(b.URL("shop", "postgres"), "SELECT current_database();") }
	right := where()
	mend := func(file, do string) {
		t.Helper()
		p.psql(console, "PAUSE shop;")
		if err := os.WriteFile(b.DatabasesFile, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		p.psql(console, do)
	}
	mend(astray+"\n", "RELOAD;\nRESUME shop;")
	if got := where(); got == right {
		t.Errorf("the pooler still leads to %s", got)
	}
	mend(entries, l.of(t, "repoint"))
	if got := where(); got != right {
		t.Errorf("once its file is mended the pooler leads to %s, want %s", got, right)
	}
}
