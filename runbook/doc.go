// Package runbook turns one HCL file into a Runbook value and back into canonical text.
//
// It knows HCL and cty and nothing else of ours: no database, no step kind, no engine. Step
// blocks keep their hcl.Body, which the registry of package steps decodes. Every mistake is an
// hcl.Diagnostic with the place in the file, the cause and a fix, and all mistakes of a file are
// found in one run.
package runbook
