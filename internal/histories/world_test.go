package histories_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// recorder is a test that may fail without failing the test: what a cut history is played for.
type recorder struct {
	name     string
	mu       sync.Mutex
	errs     []string
	cleanups []func()
}

func (r *recorder) Helper()             {}
func (r *recorder) Name() string        { return r.name }
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Cleanup(f func())    { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Fatalf(s string, a ...any) {
	r.Errorf(s, a...)
	runtime.Goexit()
}

func (r *recorder) Errorf(s string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.errs) < 20 {
		r.errs = append(r.errs, fmt.Sprintf(s, a...))
	}
}

func (r *recorder) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.errs) > 0
}

// result is what came of one play.
type result struct {
	errs   []string
	said   string         // by the program
	fired  map[string]int // faults and events, by kind
	missed []string       // events that did not happen, and why
	commit [2]int64       // acknowledged, by side
	took   time.Duration
}

func (r result) failed() bool { return len(r.errs) > 0 }

// play plays a history once on databases of its own.
func play(name string, h History) result { return playWithout(name, h, "") }

// playWithout leaves rules of the program out.
func playWithout(name string, h History, rules string) result {
	rec := &recorder{name: name}
	w := &world{recorder: rec, h: h, fired: map[string]int{}, without: rules}
	began := time.Now()
	step := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	step(w.play)
	for i := len(rec.cleanups) - 1; i >= 0; i-- {
		step(rec.cleanups[i])
	}
	return result{errs: slices.Concat(rec.errs, w.judged), said: w.log.String(), fired: w.fired, missed: w.missed, commit: [2]int64{w.commits[0].Load(), w.commits[1].Load()}, took: time.Since(began)}
}

// world is one migration at work.
type world struct {
	*recorder
	h              History
	dir            string
	source, target string
	clusters       [2]*testpg.Cluster
	proxies        [2]*testpg.Proxy // in the runner's way
	ways           [2]*testpg.Turnstile
	sides          *testpg.Sides
	book           account
	commits        [2]atomic.Int64
	keyRenamed     atomic.Bool
	owner          int
	flipped        atomic.Bool // the target takes writes, or may soon
	cancel         context.CancelFunc
	wait           sync.WaitGroup
	comparing      sync.WaitGroup
	log            bytes.Buffer
	runs           int
	mu             sync.Mutex
	fired          map[string]int
	pending        []Event // happened, and must stop the run
	touched        []string
	routines       []string // happened, and may be named only after the flip
	missed         []string // events that did not happen, and why
	modes          string   // what gives the source's triggers their mode back
	judged         []string // what the last look says of a program with rules left out
	without        string   // the rules that the program leaves out, as PGRUNBOOK_MUTANT takes them
}

func (w *world) complain(format string, args ...any) { w.Errorf(format, args...) }

func (w *world) must(err error) {
	if err != nil {
		w.Fatalf("%v", err)
	}
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fired[what]++
}

// statements counts, by kind of table, what the writers' statements came to.
func (w *world) statements(table string, ran bool) {
	i := slices.IndexFunc(w.h.Tables, func(t Table) bool { return t.Name == table })
	w.count(cond(ran, "ran: ", "refused: ") + w.h.Tables[i].Of)
}

func (w *world) play() {
	w.open()
	before := ""
	for i, c := range w.h.Commands {
		if strings.HasPrefix(c.Args, "abort") || i == 0 && hasAbort(w.h) {
			if before == "" {
				before = w.dump(w.source)
			}
		}
		w.command(c)
		if w.failed() {
			break
		}
		if strings.HasPrefix(c.Args, "abort") && len(w.touched) == 0 {
			if after := w.dump(w.source); after != before {
				w.Errorf("abort left the source different:\n%s", testpg.LinesApart(before, after))
			}
		}
	}
	time.Sleep(100 * time.Millisecond)
	w.close()
	switch {
	case w.without != "": // of each oracle by itself
		w.owner = cond(w.flipped.Load(), 1, 0)
		last := &recorder{name: w.name}
		defer func() { w.judged = last.errs }()
		w.recorder = last
		w.judge()
	case !w.failed():
		w.judge()
	}
}

func hasAbort(h History) bool {
	for _, c := range h.Commands {
		if strings.HasPrefix(c.Args, "abort") {
			return true
		}
	}
	return false
}

const runbook = "runbook \"history\" {}\n" + testpg.RunbookServers + `schema { on_ddl = "%s" }
tables { include = ["h.*"] }
copy {
  workers = 2
  chunk   = "64KiB"
}
verify { enabled = %t }
cutover {
  max_write_block = "15s" # nothing here is about time
  attempts        = 40
  retry_every     = "200ms"
  sequence_margin = 50
}
`

// open makes both sides and lets the clients begin.
func (w *world) open() {
	var err error
	w.dir, err = os.MkdirTemp("", "pgrunbook-history-")
	w.must(err)
	w.Cleanup(func() { _ = os.RemoveAll(w.dir) })
	w.servers()
	text := fmt.Sprintf(runbook, cond(w.h.Carry, "carry", "stop"), !w.h.NoVerify)
	rule := func(name, body string) {
		if body != "" {
			text += fmt.Sprintf("table %q { %s }\n", "h."+name, body)
		}
	}
	list := listKinds[w.h.List]
	setup := list.setup + fmt.Sprintf("; INSERT INTO h.list (k, v) SELECT k, '' FROM generate_series(0, %d) k;\n", listCount-1)
	rule("list", list.rule)
	for _, t := range w.h.Tables {
		setup += strings.Join(t.Setup, ";\n") + ";\n"
		rule(t.Name, t.Rule)
	}
	w.must(os.WriteFile(filepath.Join(w.dir, "history.runbook.hcl"), []byte(text), 0o600))
	w.sql(w.source, setup+"ANALYZE")
	urls := [2]string{w.source, w.target}
	for i := range w.ways {
		w.ways[i], err = testpg.NewTurnstile(urls[i], urls[1-i], probeSQL, i == 0)
		w.must(err)
		w.ways[i].Prepare = lockAll
		w.ways[i].Opened = func(snapshot string) { w.opened(i, snapshot) }
	}
	w.sides = &testpg.Sides{URLs: urls, Probe: probeSQL}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	for i, writer := range w.h.Writers {
		c := &client{w: w, index: i + 1, ops: writer.Ops}
		w.wait.Go(func() { c.run(ctx) })
	}
	w.wait.Go(func() { w.sides.Run(ctx) })
	w.wait.Go(func() { w.audit(ctx) })
	w.Cleanup(w.close)
}

// servers are shared with other histories, unless they shall crash.
func (w *world) servers() {
	if w.h.Own {
		from, to, err := testpg.PairMajors()
		w.must(err)
		w.clusters = [2]*testpg.Cluster{testpg.StartT(w, testpg.Options{Major: from}), testpg.StartT(w, testpg.Options{Major: to})}
	} else {
		from, to, err := testpg.PairMajors()
		w.must(err)
		w.clusters = [2]*testpg.Cluster{testpg.Shared(w, from), testpg.Shared(w, to)}
	}
	w.source, w.target = testpg.NewDBWith(w, w.clusters[0], shared), testpg.NewDB(w, w.clusters[1])
	for i, c := range w.clusters {
		w.proxies[i] = testpg.ListenT(w, c)
	}
}

// lockAll makes a TRUNCATE of the first client wait until the comparison has read what was there
// before it: TRUNCATE is seen by older snapshots too (PostgreSQL docs, 13.6).
func lockAll(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'h' AND relkind IN ('r', 'p') LOOP
			EXECUTE 'LOCK TABLE ' || t || ' IN ACCESS SHARE MODE'; END LOOP; END $$`)
	return err
}

// emptiedByCrash gives the unlogged tables of a side that was left and crashed afterwards: what they held when it was
// left is nowhere any more.
func emptiedByCrash(ctx context.Context, url string) ([]string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND n.nspname = 'h' AND pg_postmaster_start_time() > (SELECT max(closed) FROM pgrunbook.side)`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// opened compares the side that was left with what the other one held before its first client.
func (w *world) opened(to int, snapshot string) {
	w.flipped.Store(to == 1)
	w.comparing.Go(func() {
		defer w.ways[to].Release()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		urls := [2]string{w.source, w.target}
		tables, err := testpg.AllTables(ctx, urls[1-to])
		if err != nil {
			w.Errorf("%v", err)
			return
		}
		diffs, err := testpg.DiffAt(ctx, urls[1-to], urls[to], snapshot, tables)
		if err != nil {
			w.Errorf("%v", err)
		}
		var emptied []string
		if len(diffs) > 0 { // asked last: it may have crashed meanwhile
			if emptied, err = emptiedByCrash(ctx, urls[1-to]); err != nil {
				w.Errorf("%v", err)
			}
		}
		for _, d := range diffs {
			if !slices.Contains(emptied, d.Table) {
				w.Errorf("after the flip to side %d: %s", to, d)
			}
		}
		w.sequences(ctx, urls[1-to], urls[to])
		w.count(cond(to == 1, "flip", "flip back"))
	})
}

func (w *world) sequences(ctx context.Context, left, now string) {
	old, err := testpg.Sequences(ctx, left)
	if err != nil {
		w.Errorf("%v", err)
		return
	}
	are, err := testpg.Sequences(ctx, now)
	if err != nil {
		w.Errorf("%v", err)
		return
	}
	for name, s := range old {
		if n, ok := are[name]; !ok || n.Last < s.Last {
			w.Errorf("sequence %s stands at %d, on the side that was left at %d", name, n.Last, s.Last)
		}
	}
}

// audit adds the accounts up on the target, all the time from the flip on: no state that anybody
// can see there has another sum.
func (w *world) audit(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if !w.flipped.Load() {
			continue
		}
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, w.target); err != nil {
				conn = nil
				continue
			}
		}
		var n, sum int64
		if err := conn.QueryRow(context.WithoutCancel(ctx), "SELECT count(*), coalesce(sum(balance), 0)::bigint FROM h.account").Scan(&n, &sum); err == nil && (n != accounts || sum != accounts*startBalance) {
			w.Errorf("the target shows %d accounts with %d altogether, want %d with %d", n, sum, accounts, accounts*startBalance)
			return
		}
	}
}

func (w *world) close() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.wait.Wait()
	w.comparing.Wait() // they need the turnstiles' snapshots
	for _, t := range w.ways {
		if t != nil {
			t.Close()
		}
	}
	w.comparing.Wait()
}
