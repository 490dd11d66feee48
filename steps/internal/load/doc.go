// Package load copies the rows of captured tables in chunks and brings each table to the point
// where passes can follow it: load, scrub, key, plain indexes, analyze.
//
// Because capture comes first, a chunk needs no snapshot that outlives it: a row that changes or
// moves while its table is read has its key in the delta. What the chunks are and which are done
// is in the journal on the target; memory is never trusted. It must not know steps or runbooks,
// how an index is defined, or how a pass works.
//
// Failure behaviour: a chunk's rows and its mark commit together or not at all, so a load that
// died anywhere is continued by running it again, and costs the chunks that were in flight. A
// table that was rewritten under the load is emptied and starts over.
package load
