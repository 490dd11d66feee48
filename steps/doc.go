// Package steps holds every step kind, one file each, and the registry that decodes them from a
// runbook. A step says what it will do (Plan) and does it (Apply); the protocol that keeps data
// safe is in the packages below internal. Steps never print: they report through the engine's
// event stream.
package steps
