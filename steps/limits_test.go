package steps

import "testing"

// Only passes shrink the deltas, so a limit on their size must not make wait what passes wait for.
func TestDeltaLimitDoesNotStandInItsOwnWay(t *testing.T) {
	r := newRig(t, `limit "delta_size" { max = "8KiB" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, "UPDATE shop.customer SET name = name || '!'; INSERT INTO shop.customer SELECT g, 'more' FROM generate_series(1000, 3000) g; UPDATE shop.customer SET name = name || '?'")
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.same("shop.customer", "shop.invoice")
	if !r.heard("limit delta_size is over") {
		t.Error("the limit was never over: the test proves nothing")
	}
}

// Small tables take far more room on disk than in COPY: what is done tells how much is left.
func TestExpectedLearnsFromWhatIsDone(t *testing.T) {
	for _, c := range []struct{ all, doneBytes, doneSize, want int64 }{
		{1000, 0, 0, 1000},
		{1000, 50, 500, 100},
		{1000, 90, 1000, 1000},
		{0, 10, 0, 10},
	} {
		if got := expected(c.all, c.doneBytes, c.doneSize); got != c.want {
			t.Errorf("expected(%d, %d, %d) = %d, want %d", c.all, c.doneBytes, c.doneSize, got, c.want)
		}
	}
}
