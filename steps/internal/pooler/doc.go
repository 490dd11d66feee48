// Package pooler drives the connection poolers in front of an application: PAUSE before the hold,
// another place in the configuration file and RELOAD in the switch, RESUME once a side is open or
// whatever failed. It speaks to PgBouncer's admin console
// (https://www.pgbouncer.org/usage.html#admin-console).
//
// It is side-neutral: a Pooler knows where its database entry points and where it shall point, not
// which of the two is the source. It must not know steps, gates or the journal; what another
// process needs to undo a change is the value Change, which holds no password and is made by Plan
// before anything is written.
//
// Failure behaviour. Pause is bounded: a PAUSE that does not return is taken back over a second
// console connection that was open before it was sent, and the error names who was in the way.
// A runner that dies after PAUSE leaves the clients waiting, since PgBouncer keeps the state:
// Resume from any other process frees them and may be called at any time. A rewrite of the file is
// one rename; a runner that dies before RELOAD leaves a file that the pooler has not read, and
// Apply or Undo with the same Change go on from there. After a failure the order is Undo, then
// Resume: resumed clients must find the side that takes writes. An entry that somebody else has
// changed meanwhile is never overwritten.
package pooler
