package scope

import (
	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/runbook"
)

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

// chunkSize is what a runbook says of a table, in bytes.
func chunkSize(rb *runbook.Runbook, rule runbook.TableRule) int64 {
	if rule.Chunk != 0 {
		return rule.Chunk
	}
	return rb.Copy.Chunk
}

// Rechunk takes the chunk sizes of a runbook that was changed while its run is under way. A table whose load has begun
// keeps the pieces that it was cut into: the size is for another load of it, which DDL may bring.
func (s *Scope) Rechunk(rb *runbook.Runbook, begun func(table int32) bool) (diags hcl.Diagnostics) {
	for i := range s.Tables {
		t := &s.Tables[i]
		rule, more := rb.RuleFor(t.Schema, t.Name.Name)
		diags = append(diags, more...)
		t.Chunk = chunkSize(rb, rule)
		if !begun(t.ID) {
			t.Chunks = t.pieces()
		}
	}
	return diags
}

// pieces counts the chunks of a table that is streamed: every leaf of a tree is cut for itself, and
// a table without a key is read in one snapshot. 0 is for other methods and other times.
func (t *Table) pieces() int64 {
	switch {
	case t.Data != Live || t.Method != Stream:
		return 0
	case t.Identity == FullRow:
		return 1
	case t.Kind != Partitioned:
		return Pieces(t.Bytes, t.Blocks, t.Chunk)
	}
	var n int64
	for _, m := range t.Members {
		if m.Leaf && !m.Foreign {
			n += Pieces(m.Bytes, m.Blocks, t.Chunk)
		}
	}
	return max(n, 1)
}
