// Package pg is the only place that opens connections to PostgreSQL: connection strings,
// password commands, pinned session settings, quoting, retries by SQLSTATE and catalog reads.
//
// It is a leaf: it imports nothing of ours and knows no protocol, step or runbook. Its errors keep
// the SQLSTATE and never hold a connection string.
package pg
