// Package runbook turns one HCL file into a Runbook value and back into canonical text.
//
// It knows HCL and cty and nothing else of ours: no database, no step kind, no engine. Step
// blocks keep their hcl.Body, which the registry of package steps decodes with DecodeBody. Every
// mistake is an hcl.Diagnostic with the place in the file, the cause and a fix, and all mistakes
// of a file are found in one run.
//
// Load and Parse always return a Runbook: with errors it must not be run, but it prints them
// (WriteDiagnostics, DiagnosticsJSON). Print through it and not from the file's bytes: it keeps
// passwords out of excerpts and messages. Nothing here panics on any input, waits or connects;
// files are read once, up to a few megabytes each.
package runbook
