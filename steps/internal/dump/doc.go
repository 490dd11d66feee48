// Package dump carries structure between two servers with PostgreSQL's own programs: it finds
// pg_dump and pg_restore, makes an archive of the definitions, restores the part that must exist
// before the rows, and gives everything that comes after the rows (keys, indexes, constraints,
// triggers, rules, policies) as data, one object at a time, so that others can build it when and
// how they need it. Roles, owners, grants and settings are here too.
//
// It knows no run, no capture and no order of phases, and it never writes to the side it reads.
// Archives are in PostgreSQL's custom or directory format and go to the server through pg_restore;
// no dump text is ever given to psql, which would obey commands hidden in it (CVE-2025-8714).
// Passwords go to the programs through their environment, never through arguments.
//
// A program that is cancelled is killed with its process group; one that fails gives its last
// lines of output in the error. Everything that creates something first looks whether it is there,
// so every call may be repeated after a death.
package dump
