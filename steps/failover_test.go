package steps

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// failover leads an address from a primary to its standby.
type failover struct {
	*rig
	primary *testpg.Cluster
	address *testpg.Proxy
}

func (f *failover) standby(name string) *testpg.Cluster {
	f.t.Helper()
	s, err := f.primary.Standby(f.t.Context(), name)
	f.must(err)
	f.t.Cleanup(func() {
		if err := s.Remove(); err != nil {
			f.t.Error(err)
		}
	})
	return s
}

func (f *failover) to(s *testpg.Cluster) {
	if err := s.Promote(context.Background()); err != nil {
		f.t.Error(err)
	}
	f.address.Retarget(s.Addr())
}

func (f *failover) until(what string, is func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// A standby without the COMMIT that closes the source takes writes when it is promoted. Promoted while
// writers are held it keeps the flip from happening. Promoted later it ends the reverse passes, which
// would write over what the application does there; that it lagged was said at the cutover.
func TestR16FailoverOfTheSource(t *testing.T) {
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	f := &failover{primary: testpg.StartT(t, testpg.Options{Major: sourceMajor})}
	direct := testpg.NewDB(t, f.primary)
	f.address = testpg.ListenT(t, f.primary)
	f.rig = newRigOn(t, f.address.URL(direct), testpg.NewDB(t, testpg.Shared(t, targetMajor)), shopSetup, patient)
	f.must(f.walk(t.Context(), newSchema(f.env), newCapture(f.env), newCopy(f.env), newCatchUp(f.env), newConstraints(f.env), newReverse(f.env), newArm(f.env)))

	first := f.standby("first")
	f.unseen(direct)
	var once sync.Once
	f.onEvent = func(e engine.Event) {
		if e.Mark == "sequences" {
			once.Do(func() { f.to(first) })
		}
	}
	err = f.walk(t.Context(), newFreeze(f.env, nil))
	f.onEvent = nil
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), "promoted") && !strings.Contains(err.Error(), "failover") {
		t.Fatalf("with another server at the source's address: %v", err)
	}
	f.exec(f.source, "UPDATE shop.customer SET name = 'promoted' WHERE id = 1") // it would take writes beside the target
	f.exec(direct, "UPDATE shop.customer SET name = 'held before' WHERE id = 1")
	if err := try(t, f.target, "UPDATE shop.customer SET name = 'x' WHERE id = 1"); err == nil {
		t.Error("the target takes writes")
	}
	f.address.Retarget(f.primary.Addr()) // that one was never the source

	// A role that may not read the position knows no timeline: the new connection before the flip is all that notices.
	knows := f.env.Source
	f.env.Source = knows.OnTimeline(0, nil)
	once = sync.Once{}
	f.onEvent = func(e engine.Event) {
		if e.Mark == "sequences" {
			once.Do(func() { f.address.Retarget(first.Addr()) })
		}
	}
	err = f.walk(t.Context(), newFreeze(f.env, nil))
	f.onEvent = nil
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), "reaches another server than the hold: a failover is under way") {
		t.Fatalf("with another server at the source's address, and no timeline: %v", err)
	}
	f.address.Retarget(f.primary.Addr())
	f.env.Source = knows

	second := f.standby("second")
	f.must(second.Configure(t.Context(), map[string]string{"primary_conninfo": "host=127.0.0.1 port=1"}))
	f.must(f.walk(t.Context(), newFreeze(f.env, nil)))
	if !f.heard("do not have the COMMIT that closed it yet: ") {
		t.Error("nobody was told of the standby that would be open")
	}
	f.followedInto(second)
}

// unseen: a role that may not see how far a standby is does not take that for "all of them are there".
func (f *failover) unseen(direct string) {
	f.t.Helper()
	f.exec(direct, "CREATE ROLE plain LOGIN")
	conn, err := pgx.Connect(f.t.Context(), strings.Replace(direct, "postgres@", "plain@", 1))
	f.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	names, err := behind(f.t.Context(), conn, "", lagWait)
	if err != nil || len(names) != 1 || !strings.Contains(names[0], "GRANT pg_read_all_stats TO plain") {
		f.t.Errorf("a role without rights sees %q (%v)", names, err)
	}
}

// followedInto makes reverse passes, and lets a standby take over meanwhile.
func (f *failover) followedInto(standby *testpg.Cluster) {
	f.t.Helper()
	ctx := f.t.Context()
	ended := make(chan error, 1)
	follow := func() { ended <- Follow(ctx, f.env, journal.NewMemory().Checkpoint(followID, f.env.Sink)) }
	go follow()
	f.exec(f.target, "UPDATE shop.customer SET name = 'at the target' WHERE id = 2")
	f.until("a change goes back", func() bool { return f.heard("reverse pass of 1 rows") })
	f.to(standby)                                                                          // the old primary is cut off from everybody but those who are there already, and lives
	f.exec(f.source, "UPDATE shop.customer SET name = 'at the promoted one' WHERE id = 3") // two sides take writes
	f.exec(f.target, "UPDATE shop.customer SET name = 'at the target' WHERE id = 3")
	for _, when := range []string{"while it went", "when it began"} {
		select {
		case err := <-ended:
			if engine.ClassOf(err) != engine.ClassAmbiguous || !strings.Contains(err.Error(), "timeline 2") {
				f.t.Errorf("reverse passes, %s: %v", when, err)
			}
		case <-time.After(time.Minute):
			f.t.Fatalf("reverse passes did not end, %s", when)
		}
		if when == "while it went" {
			f.must(f.primary.KillPostmaster())
			go follow()
		}
	}
	f.want(f.source, "SELECT name FROM shop.customer WHERE id = 3", "at the promoted one")
	back, err := WayBack(ctx, f.env)
	f.must(err)
	if back.Possible {
		f.t.Error("a rollback is said to be possible")
	}
}
