// Command pgrunbook moves a live PostgreSQL database by walking a reviewed runbook.
//
// This package parses the command line, loads runbooks and saved plans, and maps errors to exit
// codes. A command builds steps or asks the journal through package steps; it knows no SQL and no
// driver. What is shown is the business of internal/view.
//
// Failure behaviour: every error ends in one exit code of the table in exit.go. The first signal
// cancels the context, so that chunks in flight are cancelled and a hold is let go; a second one,
// or five seconds, end the process. Every byte written goes through a writer that masks the
// runbook's secrets.
package main
