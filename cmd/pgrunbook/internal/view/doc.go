// Package view turns events, plans, findings and status into text, markdown or JSON for people
// and machines. It is the only place that prints.
//
// It must not know a step kind, a server or the journal, and decides nothing: what it shows is in
// what it is given. No byte of a terminal's escape sequences is written to what is not a terminal,
// unless colour is forced; control characters in names and messages are shown, never sent.
//
// Failure behaviour: an output that cannot be written never stops a walk; Close returns the first
// such error. A view that is closed without a summary writes one with exit code 1, so that the
// last line of the JSON stream is always a summary.
package view
