package faults_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestF14CarriedThroughLatency makes a migration over a way of 80 ms there and back to either side; and over one of 500 ms
// there is no freeze within its budget: none begins, so that nobody waits for it, and the cause is named.
func TestF14CarriedThroughLatency(t *testing.T) {
	t.Run("F14 80ms", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.lean()
		r.edit(`max_write_block = "5s"`, `max_write_block = "20s"`)
		ways := r.proxied()
		for _, way := range ways {
			way.Latency(40 * time.Millisecond)
		}
		r.finally(untilCatchUp...)
		r.finally(applyArgs...)
		if n := strings.Count(r.log.String(), "freeze hold:"); n != 1 {
			t.Errorf("writers were held %d times", n)
		}
		for i, way := range ways {
			if way.Fired(testpg.FaultLatency) == 0 {
				t.Errorf("the way to side %d was short", i)
			}
		}
		r.moved(0, 1)
		r.writing(1)
		r.balance(r.target)
	})
	t.Run("F14 500ms", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.lean()
		r.edit("attempts        = 40", "attempts        = 1")
		ways := r.proxied()
		r.finally("apply", "--auto-approve", "--until", "arm")
		slow := moment{"catch_up.drained@1", func() {
			for _, way := range ways {
				way.Latency(250 * time.Millisecond)
			}
			r.ledger.TakeGap()
		}}
		o := r.during("", []moment{slow}, applyArgs...).end()
		gap := r.ledger.TakeGap()
		if o.code != 16 || !strings.Contains(o.text, "nearer to the servers") || strings.Contains(o.text, "recording") {
			t.Errorf("%s:\n%s", o, o.text)
		}
		if strings.Contains(o.text, "freeze hold:") || gap > 5*time.Second {
			t.Errorf("writers were held: the longest gap is %s", gap)
		}
		for i, way := range ways {
			if way.Fired(testpg.FaultLatency) == 0 {
				t.Errorf("the way to side %d was short", i)
			}
			way.Heal()
		}
		r.finally(applyArgs...)
		r.moved(0, 1)
		r.writing(1)
		r.balance(r.target)
	})
}
