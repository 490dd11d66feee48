package steps

import (
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// TestNextWhileALockIsWaitedFor: whoever looks is told who is in the way and what ends that, and only
// what may be ended.
func TestNextWhileALockIsWaitedFor(t *testing.T) {
	session := func(pid int32) pg.Blocker { return pg.Blocker{PID: pid, User: "app", Granted: true} }
	const none = "nothing: it waits for a lock on the target, and goes on once that is free"
	for name, c := range map[string]struct {
		blockers []pg.Blocker
		want     string
	}{
		"one":              {[]pg.Blocker{session(12)}, "wait for pid 12 to end, or on the target: SELECT pg_terminate_backend(12)"},
		"two, one twice":   {[]pg.Blocker{session(12), session(13), session(12)}, "wait for pid 12, pid 13 to end, or on the target: SELECT pg_terminate_backend(p) FROM unnest(ARRAY[12, 13]) p"},
		"in the queue":     {[]pg.Blocker{session(12), {PID: 14}}, "wait for pid 12 to end, or on the target: SELECT pg_terminate_backend(12)"},
		"prepared":         {[]pg.Blocker{{Prepared: "it's", Granted: true}}, `wait for prepared transaction "it's" to end, or on the target: COMMIT PREPARED 'it''s', or ROLLBACK PREPARED`},
		"ours":             {[]pg.Blocker{{PID: 15, Application: "pgrunbook abc copy", Granted: true}}, none},
		"autovacuum":       {[]pg.Blocker{{PID: 16, Autovacuum: true, Granted: true}}, none},
		"against wrapping": {[]pg.Blocker{{PID: 17, Autovacuum: true, Wraparound: true, Granted: true}}, none},
		"gone meanwhile":   {nil, none},
	} {
		var got engine.Event
		waiting(engine.SinkFunc(func(e engine.Event) { got = e }), engine.Target, "gate a table of the target")(pg.LockWait{Object: "t", Attempt: 2, Blockers: c.blockers})
		if got.Hint != c.want {
			t.Errorf("%s: %q, want %q", name, got.Hint, c.want)
		}
		st := Status{State: journal.Active, Writes: engine.Source, Step: "arm", inWay: got.Hint}
		if next := st.next(); next != "pgrunbook apply" {
			t.Errorf("%s: without a runner nothing is waited for, and next is %q", name, next)
		}
		st.Holder = &journal.Holder{Alive: true}
		if next := st.next(); next != c.want {
			t.Errorf("%s: next is %q", name, next)
		}
	}
}

// TestNextWhileSomethingElseIsWaitedFor: what goes on by itself asks for nothing, and says so.
func TestNextWhileSomethingElseIsWaitedFor(t *testing.T) {
	runner := &journal.Holder{Alive: true}
	for want, st := range map[string]Status{
		"nothing: it goes on once the limit is kept. pgrunbook set NAME=VALUE changes a limit": {Holder: runner, Held: "limit sessions is over 1: pause"},
		"nothing: it goes on by itself when that is over. pgrunbook status --watch follows it": {Holder: runner, Waiting: "waiting for the cutover window 22:00-04:00"},
		"nothing: it is running. pgrunbook status --watch follows it":                          {Holder: runner},
		"pgrunbook apply": {Waiting: "waiting for the cutover window 22:00-04:00"},
	} {
		st.State, st.Writes, st.Step = journal.Active, engine.Source, "copy"
		if next := st.next(); next != want {
			t.Errorf("next is %q, want %q", next, want)
		}
	}
}
