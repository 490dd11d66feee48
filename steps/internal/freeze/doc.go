// Package freeze is the only place that stops an application's writes and lets them go on the
// other side: the hold, the proof that no older writer is left, and the flip, whose heart is two
// COMMITs back to back.
//
// It is side-neutral: from is the side that takes writes, to the one that will. Whatever dies
// before from's COMMIT leaves from writable, because the hold and the gate's flag are one
// transaction that the server ends by itself; what dies between the two COMMITs is ended by
// Resolve, which any process may call.
package freeze
