package steps

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

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
	timeout  = regexp.MustCompile(`(?i)\block_timeout = '?(\d+)(ms|s|min|h)?`)
	endOfTx  = regexp.MustCompile(`(?i)^\s*(commit|rollback)\s*;?$`)
	harmless = regexp.MustCompile(`(?i) (ON|TABLE|ONLY|EXISTS) "?pgrunbook"?\.|ACCESS SHARE MODE|pg_temp|SCHEMA "?pgrunbook`)
)

// longestLock is what the application may have to wait behind one try of ours: deadlock_timeout, once where
// an autovacuum is in the way, and what is added to it.
const longestLock = 1500 * time.Millisecond

// setIn is a lock_timeout in a log line; without a unit it is in ms.
func setIn(text string) (time.Duration, bool) {
	m := timeout.FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0, false
	}
	unit := map[string]time.Duration{"": time.Millisecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour}[m[2]]
	return time.Duration(n) * unit, true
}

// strongStatements reads both servers' logs: every statement of ours that takes a strong lock on a
// table of the application ran under a lock_timeout of at most longestLock. pg_restore locks what its
// own transaction made.
func (b *lockBench) strongStatements(clusters map[string]*testpg.Cluster) {
	b.t.Helper()
	kinds := map[string]int{}
	for side, c := range clusters {
		type session struct {
			local, whole time.Duration // 0: none
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
			if set, ok := setIn(text); ok {
				if strings.Contains(text, "LOCAL") {
					s.local = set
				} else {
					s.whole = set
				}
			}
			if kind := strong.FindString(text); kind != "" && !harmless.MatchString(text) {
				kinds[side+" "+strings.ToUpper(strings.TrimSpace(kind))]++
				if now := cmp.Or(s.local, s.whole); now == 0 || now > longestLock {
					b.t.Errorf("on the %s %s ran with a lock_timeout of %s: %s", side, m[2], now, text)
				}
			}
			if endOfTx.MatchString(text) {
				s.local = 0
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
