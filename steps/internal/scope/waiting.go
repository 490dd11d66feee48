package scope

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Waiting tells of a lost attempt at a lock on a side: what cannot be done yet, for which table, who
// is in the way, and what to type.
func Waiting(side engine.Side, what string, w pg.LockWait) engine.Event {
	names := make([]string, len(w.Blockers))
	for i, b := range w.Blockers {
		names[i] = b.String()
	}
	message := fmt.Sprintf("waiting to %s: no lock on %s at attempt %d", what, w.Object, w.Attempt)
	if len(names) > 0 {
		message += ", in the way: " + strings.Join(names, "; ")
	}
	return engine.Event{
		Kind: engine.EventWaiting, At: time.Now(), Object: w.Object, Message: message, Reason: "lock", Blockers: names, Elapsed: w.Waited,
		Hint: WaitOrEnd(side, w.Blockers),
	}
}

// WaitOrEnd says what to type while others hold a lock that we need. Whoever waits for it in front
// of us is not worth ending: those who hold it are.
func WaitOrEnd(side engine.Side, blockers []pg.Blocker) string {
	var who, pids, ends []string
	for _, b := range blockers {
		switch {
		case !b.Granted || !b.Foreign() || b.Autovacuum || b.Wraparound:
		case b.Prepared != "":
			who = append(who, fmt.Sprintf("prepared transaction %q", b.Prepared))
			ends = append(ends, "COMMIT PREPARED "+pg.Literal(b.Prepared)+", or ROLLBACK PREPARED")
		case !slices.Contains(pids, strconv.Itoa(int(b.PID))):
			who, pids = append(who, fmt.Sprintf("pid %d", b.PID)), append(pids, strconv.Itoa(int(b.PID)))
		}
	}
	switch len(pids) {
	case 0:
	case 1:
		ends = append(ends, "SELECT pg_terminate_backend("+pids[0]+")")
	default:
		ends = append(ends, "SELECT pg_terminate_backend(p) FROM unnest(ARRAY["+strings.Join(pids, ", ")+"]) p")
	}
	if len(ends) == 0 {
		return "nothing: it waits for a lock on the " + string(side) + ", and goes on once that is free"
	}
	return fmt.Sprintf("wait for %s to end, or on the %s: %s", strings.Join(who, ", "), side, strings.Join(ends, "; "))
}
