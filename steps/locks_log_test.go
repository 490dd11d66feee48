package steps

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// slowVacuum makes an autovacuum of any table take longer than a test.
var slowVacuum = map[string]string{
	"autovacuum_naptime": "1s", "autovacuum_vacuum_cost_delay": "100ms", "autovacuum_vacuum_cost_limit": "1", "deadlock_timeout": "1s",
	"max_prepared_transactions": "10", "log_statement": "all", "log_line_prefix": "<%p|%a|%d> ",
}

// Who waits to ANALYZE holds up no reader and no writer: it is not among the strong ones.
var (
	logLine  = regexp.MustCompile(`^<(\d+)\|([^|]*)\|[^>]*> LOG:  (?:statement|execute [^:]*): (.*)`)
	strong   = regexp.MustCompile(`(?i)^\s*(CREATE TRIGGER|DROP TRIGGER|ALTER TABLE|TRUNCATE|LOCK TABLE|CREATE (UNIQUE )?INDEX|REFRESH|DROP TABLE|DROP INDEX|CREATE RULE|CREATE POLICY|REINDEX|CLUSTER|DROP SCHEMA)`)
	timeout  = regexp.MustCompile(`(?i)lock_timeout = '?(\d+)`)
	endOfTx  = regexp.MustCompile(`(?i)^\s*(commit|rollback)\s*;?$`)
	harmless = regexp.MustCompile(`(?i) (ON|TABLE|ONLY|EXISTS) "?pgrunbook"?\.|ACCESS SHARE MODE|pg_temp|SCHEMA "?pgrunbook`)
)

// strongStatements reads both servers' logs: every statement of ours that takes a strong lock on a
// table of the application ran under a lock_timeout that was set right before it. pg_restore locks what
// its own transaction made.
func (b *lockBench) strongStatements(clusters map[string]*testpg.Cluster) {
	b.t.Helper()
	kinds := map[string]int{}
	for side, c := range clusters {
		type session struct {
			local, whole string
		}
		sessions := map[string]*session{}
		for line := range strings.Lines(c.Log()) {
			m := logLine.FindStringSubmatch(line)
			if m == nil || !strings.HasPrefix(m[2], "pgrunbook") || strings.Contains(m[2], " restore ") {
				continue
			}
			s := sessions[m[1]]
			if s == nil {
				s = &session{}
				sessions[m[1]] = s
			}
			text := strings.TrimSpace(m[3])
			if set := timeout.FindStringSubmatch(text); set != nil {
				if strings.Contains(text, "LOCAL") {
					s.local = set[1]
				} else {
					s.whole = set[1]
				}
			}
			if kind := strong.FindString(text); kind != "" && !harmless.MatchString(text) {
				kinds[side+" "+strings.ToUpper(strings.TrimSpace(kind))]++
				if now := max(s.local, s.whole); now == "" || now == "0" {
					b.t.Errorf("on the %s %s ran without a lock_timeout: %s", side, m[2], text)
				}
			}
			if endOfTx.MatchString(text) {
				s.local = ""
			}
		}
	}
	if len(kinds) < 6 {
		b.t.Errorf("only these statements were found: %v", kinds)
	}
	names := make([]string, 0, len(kinds))
	for k, n := range kinds {
		names = append(names, fmt.Sprintf("%s (%d)", k, n))
	}
	slices.Sort(names)
	b.t.Logf("statements of ours with a strong lock on a table of the application: %s", strings.Join(names, ", "))
}
