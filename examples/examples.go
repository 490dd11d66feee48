// Package examples holds runnable runbooks; every one is run by a test.
package examples

import _ "embed"

// Demo is the runbook that the demo walks through.
//
//go:embed demo.runbook.hcl
var Demo []byte
