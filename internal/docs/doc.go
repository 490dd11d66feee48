// Package docs holds the pages of this project to what the program really does. Its tests run small
// migrations on throw-away servers and compare: the blocks of README.md between markers with what the
// program prints, docs/reference.md with the words that the language takes, docs/objects.md with the
// catalogs of a run, every psql line of docs/what-if.md with its effect in the state that it is for,
// and docs/faults.md with faults.txt and the names of all tests.
//
//	make docs                                            rewrites README.md's blocks and docs/faults.md
//	go test ./internal/docs -run TestReadme -update      the first of them
//	go test ./internal/docs -run TestFaults -update      the second, in a second
//
// A block is rewritten only when more than its figures changed: numbers, sizes, times, ports and run
// ids do not count. What stands there is always the unchanged output of one run.
//
// The package has no code beside its tests. It must not be imported.
package docs
