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
