// Package capture records which rows an application changes: delta tables, trigger functions and
// triggers on the side that takes writes, and the fingerprint that finds what fires no trigger.
//
// It is side-neutral: relations are found by name in the catalog of the side that a connection
// reaches, oids of a scope are not used. It must not know steps, runbooks, loads or passes.
//
// Failure behaviour: one relation is changed per transaction under a lock_timeout below
// deadlock_timeout, so that we and never the application are the victim; everything may be
// called again after any death. Objects of another run are refused, never touched.
//
// What an application's DDL can do to its own writes: delta columns have base types without
// modifiers and integers as bigint, so a wider key is no error. Renaming a key column, or giving
// it a type that the old one does not cast to, makes writes to that table fail until the table is
// captured again or Neutralize is called; Check reports both as stop. Servers before 14 refuse to
// ATTACH a table that has statement triggers with transition tables: there, a partition that was
// captured and detached cannot be attached again while it is captured.
package capture
