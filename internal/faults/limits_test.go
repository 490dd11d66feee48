package faults_test

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestF17Limits takes connections, lock slots and temporary space away. The message names what to
// set, and the same command goes on afterwards.
func TestF17Limits(t *testing.T) {
	t.Parallel()
	r, clusters := ownServers(t, map[string]string{"max_connections": "40", "max_locks_per_transaction": "10", "max_prepared_transactions": "0"})
	says := func(o outcome, words ...string) {
		t.Helper()
		if o.code == 0 || o.signal != 0 {
			t.Fatalf("%s, want an error with %q\n%s", o, words, o.text)
		}
		for _, w := range words {
			if !strings.Contains(o.text, w) {
				t.Errorf("%s: the message does not say %q\n%s", o, w, o.text)
			}
		}
	}
	{ // lock slots
		for first := 0; first < 120; first += 20 {
			var sql strings.Builder
			if first == 0 {
				sql.WriteString("CREATE TABLE app.wide (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);")
			}
			for n := first; n < first+20; n++ {
				fmt.Fprintf(&sql, "CREATE TABLE app.wide_%d PARTITION OF app.wide FOR VALUES FROM (%d) TO (%d);", n, n*10, n*10+10)
			}
			r.sql(r.source, sql.String())
			r.sql(r.source, fmt.Sprintf("INSERT INTO app.wide SELECT g, g FROM generate_series(%d, %d) g", first*10, first*10+199))
		}
		o := r.run("", applyArgs...)
		says(o, "max_locks_per_transaction")
		if !regexp.MustCompile(`max_locks_per_transaction = \d+`).MatchString(o.text) {
			t.Errorf("it is not said to what:\n%s", o.text)
		}
		for _, c := range clusters {
			r.must(c.Configure(t.Context(), map[string]string{"max_locks_per_transaction": "200"}))
			r.must(c.Restart(t.Context()))
		}
	}
	{ // connections
		p := r.start("load.claimed@3:sleep=1s", "apply", "--auto-approve", "--until", "copy")
		if !p.passed("load.claimed", 3) {
			t.Fatal("the runner copied nothing")
		}
		var idle []*pgx.Conn
		for {
			conn, err := pgx.Connect(t.Context(), r.target)
			if sqlState(err) == "53300" {
				break
			}
			r.must(err)
			idle = append(idle, conn)
		}
		r.sql(r.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgrunbook%load%'")
		// Where it lacks one it says so, for some minutes; a person may have seen enough.
		lacks := func() bool { return strings.Contains(p.said(), "too many clients") }
		for deadline := time.Now().Add(3 * time.Minute); !lacks() && p.state() != "Z"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("it goes on for ever:\n%s", p.said())
			}
		}
		if lacks() {
			p.signal(syscall.SIGINT)
		}
		if o := p.end(); o.code != 130 {
			r.acceptable(o)
		}
		// What the runner had is taken as well.
		for {
			conn, err := pgx.Connect(t.Context(), r.target)
			if err != nil {
				break
			}
			idle = append(idle, conn)
		}
		says(r.run("", applyArgs...), "too many", "max_connections", "Lower workers")
		for _, conn := range idle {
			r.must(conn.Close(t.Context()))
		}
	}
	{ // temporary space
		r.sql(r.source, "INSERT INTO app.item (name, net) SELECT repeat(md5(g::text), 4), 1 FROM generate_series(1, 20000) g")
		r.sql(r.target, "ALTER ROLE postgres SET temp_file_limit = '64kB'; ALTER ROLE postgres SET maintenance_work_mem = '64kB'; ALTER ROLE postgres SET work_mem = '64kB'")
		r.sql(r.source, "ALTER ROLE postgres SET temp_file_limit = '64kB'; ALTER ROLE postgres SET work_mem = '64kB'")
		says(r.run("", applyArgs...), "temp_file_limit")
		for _, url := range []string{r.source, r.target} {
			r.sql(url, "ALTER ROLE postgres RESET ALL")
		}
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}
