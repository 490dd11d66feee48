package faults_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const hotSchema = `CREATE SCHEMA app;
CREATE TABLE app.hot (id int PRIMARY KEY, n bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
INSERT INTO app.hot SELECT i, 0 FROM generate_series(1, 8) i;
CREATE TABLE app.twin (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), tx bigint NOT NULL DEFAULT txid_current());`

// hotScripts are what pgbench's clients do. Rows 1 to 8 stay; 101 to 108 come and go, and what one
// has counted when it goes is moved to a row that stays. So the sum of n is the number of committed
// transactions of the first two, whatever their order was, and of twins: two transactions with one
// timestamp, since now() is when the message came that both are in (PostgreSQL's StartTransaction), of which
// each leaves a row that says so.
var hotScripts = []struct {
	weight int
	counts int64 // how much the sum grows
	sql    string
}{
	{6, 1, "\\set r random(1, 8)\nUPDATE app.hot SET n = n + 1, at = now() WHERE id = :r;\n"},
	{3, 1, "\\set s random(101, 108)\nINSERT INTO app.hot AS h VALUES (:s, 1) ON CONFLICT (id) DO UPDATE SET n = h.n + 1, at = now();\n"},
	{2, 0, "\\set r random(1, 8)\n\\set s random(101, 108)\nWITH gone AS (DELETE FROM app.hot WHERE id = :s RETURNING n) UPDATE app.hot h SET n = h.n + gone.n, at = now() FROM gone WHERE h.id = :r;\n"},
	{1, 0, "\\set r random(1, 8)\n" + oneTwin + "\\; SELECT pg_sleep(0.02)\\; " + oneTwin + ";\n"},
}

const (
	oneTwin    = "BEGIN\\; INSERT INTO app.twin DEFAULT VALUES\\; UPDATE app.hot SET n = n + 1, at = now() WHERE id = :r\\; COMMIT"
	twinScript = 3
	// twinsSQL counts timestamps that several transactions share, loneSQL those that one alone has so far.
	twinsSQL = "SELECT count(*) FROM (SELECT FROM app.twin GROUP BY at HAVING count(DISTINCT tx) > 1) t"
	loneSQL  = "SELECT count(*) FROM (SELECT FROM app.twin GROUP BY at HAVING count(*) = 1) t"
)

const hotRunbook = "runbook \"hot\" {}\n" + testpg.RunbookServers + `tables { include = ["app.*"] }
cutover {
  max_write_block = "5s" # two shared cores
  attempts        = 40
  retry_every     = "300ms"
}
`

// bench is pgbench at work. It ends when each of its clients was refused.
type bench struct {
	r   *rig
	cmd *exec.Cmd
	out bytes.Buffer
}

func (r *rig) bench(clients int) *bench {
	r.t.Helper()
	path, err := testpg.PgbenchPath(r.t.Context())
	r.must(err)
	b := &bench{r: r}
	args := []string{"-n", "-c", strconv.Itoa(clients), "-j", "2", "-T", "100000", "-l", "--log-prefix=hot"}
	for i, s := range hotScripts {
		name := fmt.Sprintf("hot%d.sql", i)
		r.must(os.WriteFile(filepath.Join(r.dir, name), []byte(s.sql), 0o600))
		args = append(args, "-f", fmt.Sprintf("%s@%d", name, s.weight))
	}
	b.cmd = exec.Command(path, append(args, r.source)...)
	b.cmd.Dir, b.cmd.Stdout, b.cmd.Stderr = r.dir, &b.out, &b.out
	r.must(b.cmd.Start())
	r.t.Cleanup(func() {
		_ = b.cmd.Process.Signal(syscall.SIGKILL) // it has ended, or the test has failed
	})
	return b
}

// told is by how much the sum must have grown by what pgbench was told, by how much more it may have
// by what it was told nothing of, both without the twins, and how many pairs of these it was told of.
func (b *bench) told() (sum, unknown int64, twins int) {
	b.r.t.Helper()
	_ = b.cmd.Wait() // it says that its clients were refused
	refused := strings.Count(b.out.String(), "aborted in command")
	if refused == 0 {
		b.r.t.Fatalf("no client of pgbench was refused:\n%s", &b.out)
	}
	for line := range strings.Lines(b.out.String()) {
		if strings.Contains(line, " aborted") && strings.Contains(line, "client ") && !strings.Contains(line, "ERROR: ") {
			unknown++
		}
	}
	logs, err := filepath.Glob(filepath.Join(b.r.dir, "hot.*"))
	b.r.must(err)
	for _, path := range logs {
		if strings.HasSuffix(path, ".sql") {
			continue
		}
		f, err := os.Open(path)
		b.r.must(err)
		for lines := bufio.NewScanner(f); lines.Scan(); {
			field := strings.Fields(lines.Text()) // client, number, time, script, seconds, microseconds
			if len(field) < 6 || field[2] == "failed" {
				continue
			}
			script, err := strconv.Atoi(field[3])
			b.r.must(err)
			sum += hotScripts[script].counts
			if script == twinScript {
				twins++
			}
		}
		b.r.must(f.Close())
	}
	return sum, unknown, twins
}

// TestHotTable: hundreds of clients write as fast as they can to one table of a few rows, which come
// and go, while passes carry it over and through the flip. Transactions share timestamps and commit in
// another order than they began in: who forgets changes by time or by number loses some here.
func TestHotTable(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	source, target := majors(t)
	const clients = 300
	lasts := cond(soak(), 20*time.Minute, time.Minute)
	settings := map[string]string{"max_connections": "400"}
	r := &rig{t: t, dir: t.TempDir(), source: testpg.NewDB(t, testpg.StartT(t, testpg.Options{Major: source, Settings: settings})), target: testpg.NewDB(t, testpg.Shared(t, target))}
	var err error
	r.clients, err = testpg.ClientBinDir(t.Context(), source)
	r.must(err)
	r.must(os.WriteFile(filepath.Join(r.dir, "faults.runbook.hcl"), []byte(hotRunbook), 0o600))
	r.sql(r.source, hotSchema)
	b := r.bench(clients)
	r.finally("apply", "--auto-approve", "--until", "copy")
	passes, parted := 0, 0
	for end := time.Now().Add(lasts); time.Now().Before(end); passes++ {
		r.finally(untilCatchUp...)
		parted += r.number(r.target, loneSQL) // the target is as the latest pass has left it
	}
	if n := r.number(r.source, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'"); n != clients {
		t.Fatalf("%d of %d clients were there before the flip", n, clients)
	}
	r.finally(applyArgs...)
	sum, unknown, twins := b.told()
	if !testpg.Refuses(t.Context(), r.source, "UPDATE app.hot SET n = n") {
		t.Error("the source takes writes after the flip")
	}
	diffs, err := testpg.Diff(t.Context(), r.source, r.target, []string{"app.hot", "app.twin"})
	r.must(err)
	for _, d := range diffs {
		t.Errorf("differs: %s", d)
	}
	if got := int64(r.number(r.target, "SELECT sum(n)::bigint - (SELECT count(*) FROM app.twin) FROM app.hot")); got < sum || got > sum+unknown {
		t.Errorf("the target counts %d transactions beside the twins, pgbench %d and %d of which it knows nothing", got, sum, unknown)
	}
	there := r.number(r.target, twinsSQL)
	if rows := r.number(r.target, "SELECT count(*) FROM app.twin"); rows < 2*twins {
		t.Errorf("the target has %d twins, pgbench was told of %d pairs", rows, twins)
	}
	if there == 0 {
		t.Error("no two transactions had one timestamp: nothing was proved")
	}
	if parted == 0 {
		t.Error("no pass came between two transactions with one timestamp: nothing was proved")
	}
	t.Logf("%d clients, caught up %d times; %d counted transactions, %d unknown; %d timestamps of several, a pass came between %d", clients, passes, sum, unknown, there, parted)
}
