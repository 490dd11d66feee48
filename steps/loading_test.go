package steps

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const loadingRunbook = `copy {
  workers = 1
  chunk   = "64KiB"
}
table "shop.early" { chunk = "1GiB" }
limit "copy_rate" {
  max  = "512KiB/s"
  then = "slow"
}
`

// D17: rows of chunks that are loaded move to the end of their table, to be read once more, while passes follow another
// table that is loaded. They leave the one that is loading alone: its keys wait in the delta for the scrub, without which
// the later chunk doubles the rows, or has them left out where the target has the key.
func TestD17PassesLeaveALoadingTableAlone(t *testing.T) {
	every := followEvery
	followEvery = 20 * time.Millisecond
	t.Cleanup(func() { followEvery = every })
	setup := strings.NewReplacer("20000", "4000", "25000", "8000").Replace(limitedSetup)
	for _, mode := range []string{"restore", "existing"} {
		t.Run(mode, func(t *testing.T) {
			source, target := testpg.Pair(t)
			if mode == "existing" {
				l := &rig{t: t}
				l.exec(target, setup+"TRUNCATE shop.big, shop.early")
			}
			l := &limited{rig: newRigOn(t, source, target, setup, loadingRunbook+`schema { mode = "`+mode+`" }`)}
			l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
			l.start(newCopy(l.env))
			big := tableOf(l.rig, "big").ID
			chunks := func(state string) int {
				return l.number(l.target, fmt.Sprintf("SELECT count(*) FROM pgrunbook.item WHERE tbl = %d AND state = '%s'", big, state))
			}
			l.until("chunks are loaded", func() bool { return chunks("done") > 1 })
			keys := 0
			for n := range 3 {
				// The first rows are in chunks that are done; there is no room for them where they are.
				l.exec(l.source, fmt.Sprintf("UPDATE shop.big SET pad = repeat('%d', 1000) WHERE id <= 20; DELETE FROM shop.big WHERE id = %d; UPDATE shop.early SET pad = 'pass %d' WHERE id = 1", n, 30+n, n))
				keys += 21
				l.until("a pass", func() bool {
					return l.number(l.target, fmt.Sprintf("SELECT count(*) FROM shop.early WHERE pad = 'pass %d'", n)) == 1
				})
				if left := l.number(l.source, fmt.Sprintf("SELECT count(*) FROM pgrunbook.delta_%s WHERE rel = %d", tableOf(l.rig, "big").Key.Shape, big)); left != keys {
					t.Fatalf("after %d passes %d keys of the table that is loading wait, want %d", n+1, left, keys)
				}
			}
			if chunks("pending") == 0 {
				t.Fatal("nothing was left to load: this proves nothing")
			}
			if l.number(l.source, "SELECT count(*) FROM shop.big WHERE id <= 20 AND ctid > '(500,0)'") != 20 {
				t.Error("the rows did not move")
			}
			l.setting("copy_rate", Unlimited)
			l.must(<-l.ended)
			l.must(l.walk(t.Context(), newCatchUp(l.env), newConstraints(l.env)))
			l.same("shop.big", "shop.early")
			l.want(l.target, "SELECT count(*)::text FROM shop.big WHERE id <= 20", "20")
		})
	}
}
