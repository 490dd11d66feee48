package pass

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A standby that lagged gives transaction ids out again. By the snapshot of the primary that it was promoted in place of
// its images would look as if they had been applied.
func TestF12ImagesAfterAPromotion(t *testing.T) {
	for _, identity := range []scope.Identity{scope.FullRow, scope.AppendOnly} {
		t.Run(string(identity), func(t *testing.T) {
			p := newPair(t, keyless, func(t *scope.Table) { t.Identity = identity })
			p.from = p.from.OnTimeline(1, nil)
			p.passer = p.newPasser()
			p.app(`INSERT INTO k VALUES (1)`)
			p.synced()
			slot := func(sql string) {
				t.Helper()
				p.exec(p.target, `UPDATE pgrunbook.watermark SET `+sql+` WHERE from_side = 'source/1'`)
			}

			slot(`timeline = 7`) // all that was captured is younger: nothing is in doubt
			p.app(`INSERT INTO k VALUES (2)`)
			p.synced()
			if got := p.one(p.target, `SELECT timeline::text FROM pgrunbook.watermark WHERE from_side = 'source/1'`); got != "1" {
				t.Errorf("after a pass the snapshot is of timeline %s", got)
			}

			ahead := p.one(p.source, `SELECT format('snapshot = ''%1$s:%1$s:''', txid_current() + 1000000)`)
			slot(ahead + `, timeline = 7`)
			p.app(`INSERT INTO k VALUES (3)`)
			_, err := p.passer.Exact(p.ctx, Options{})
			var unfit *UnfitError
			if !errors.As(err, &unfit) || !strings.Contains(err.Error(), "(timeline 1, was 7)") || !strings.Contains(engine.HintOf(err), "loads the table again") {
				t.Errorf("a pass by the snapshot of another timeline says %v", err)
			}
			if got := p.one(p.source, `SELECT count(*)::text FROM pgrunbook.image_1`); got != "1" {
				t.Errorf("of 1 image that no pass has applied %s are left", got)
			}

			slot(`timeline = 1`) // that of the same server tells what was applied
			p.exact()
			if got := p.one(p.target, `SELECT count(*)::text FROM k`); got != "2" {
				t.Errorf("an image that was applied came again: %s rows", got)
			}
		})
	}
}
