package capture

import "github.com/pgrunbook/pgrunbook/steps/internal/scope"

// deltaRow is what one captured key takes in a delta, its index included: measured with a key of one
// integer.
const deltaRow = 64

// Room is what a table's captured changes take when every one of its rows changes once. Of rows that
// nobody counted, the table's own size tells: a captured key is hardly larger than a row.
func Room(t scope.Table) int64 {
	if t.Data != scope.Live || t.Capture == scope.NoCapture {
		return 0
	}
	room := t.Rows * deltaRow
	if t.Unanalyzed {
		room = max(room, t.Bytes)
	}
	if t.Identity != scope.ByKey {
		room += t.Bytes // the whole row is recorded
	}
	return room
}
