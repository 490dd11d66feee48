// Package scope resolves a runbook's patterns against the two catalogs: which tables and
// sequences are carried, by which key, method and kind of capture. The result is data: it is
// stored in the plan, and every step and protocol package works from it.
package scope
