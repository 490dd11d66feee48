package journal

import (
	"errors"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A record whose wait for a synchronous standby somebody cancels is not taken for written: a failover could take it back.
func TestRecordWhoseWaitWasCancelled(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: major(t)})
	url := testpg.NewDB(t, c)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	back, ended := testpg.LoseStandbyT(t, c), make(chan error, 1)
	go func() { ended <- r.DecideFlip(testContext(t), r.Epoch, engine.Source, engine.Target, nil) }()
	testpg.CancelStandbyT(t, url, "query ILIKE 'commit%'", ended)
	if err := <-ended; !errors.Is(err, pg.ErrAlone) {
		t.Errorf("recording the decision ended with %v", err)
	}
	back()
}
