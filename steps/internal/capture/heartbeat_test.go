package capture

import (
	"errors"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A heartbeat whose wait for a synchronous standby somebody cancels is none: a failover could take back what it covers.
func TestHeartbeatWhoseWaitWasCancelled(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: 15})
	d := newDBOn(t, c, `CREATE TABLE t (id int PRIMARY KEY)`)
	if err := Prepare(d.ctx, d.ours, testRun); err != nil {
		t.Fatal(err)
	}
	back, ended := testpg.LoseStandbyT(t, c), make(chan error, 1)
	go func() { ended <- Heartbeat(d.ctx, d.ours) }()
	testpg.CancelStandbyT(t, d.url, "query LIKE '%pgrunbook.heartbeat%'", ended)
	if err := <-ended; !errors.Is(err, pg.ErrAlone) || !pg.Retryable(err) {
		t.Errorf("the heartbeat ended with %v", err)
	}
	if !d.ours.IsClosed() {
		t.Error("its session goes on")
	}
	back()
}
