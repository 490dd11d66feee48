package scope

// maxChunks is the most pieces that one relation is cut into.
const maxChunks = 100_000

// Pieces is into how many chunks of a size in bytes the load cuts one relation: no more than it has
// blocks, and always one. A range of blocks is a whole number of them, so there may be fewer than
// the bytes alone say.
func Pieces(bytes, blocks, chunk int64) int64 {
	chunk, blocks = max(chunk, 1), max(blocks, 1)
	n := min(max((bytes+chunk-1)/chunk, 1), maxChunks, blocks)
	step := (blocks + n - 1) / n
	return (blocks + step - 1) / step
}

// chunks counts the pieces of a table that is streamed: every leaf of a tree is cut for itself, and
// a table without a key is read in one snapshot. 0 is for other methods and other times.
func (r *resolver) chunks(rel *relation, t *Table) int64 {
	switch {
	case t.Data != Live || t.Method != Stream:
		return 0
	case t.Identity == FullRow:
		return 1
	case rel.kind != "p":
		return Pieces(rel.bytes, rel.blocks, t.Chunk)
	}
	var n int64
	for _, m := range r.cat.members(rel) {
		if m.kind == "r" { // no middle, nothing foreign
			n += Pieces(m.bytes, m.blocks, t.Chunk)
		}
	}
	return max(n, 1)
}
