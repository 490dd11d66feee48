// Package histories plays random migrations. A seed makes a history: tables with their first rows,
// writers with lists of transactions, the commands of the runner, faults and changes of the schema in
// the middle of them. It is a value that can be printed, stored and cut. The package holds tests only.
//
// It knows the product as a program (built once with the tag "failpoint"): it must not import engine,
// steps or runbook. What is right is decided outside of it: each transaction appends a number of its
// own to lists, so that a lost, doubled, torn or reordered commit shows in the lists themselves;
// transfers between accounts keep a sum; at each flip every row of the closed side is compared with
// what the other one held before its first writer; at the end definitions are compared. What is
// refused or stops must do so with an exit code of the reference and the name of what is in the way.
//
// Everything random comes from the seed; how the server interleaves the writers does not. So a seed
// that failed is played again to see how often it fails, then cut for a bounded time to the smallest
// history that still does, which is printed as a script and as a file for testdata/past, where it
// stays as a test.
//
//	PGRUNBOOK_HISTORY_SEED=17 go test ./internal/histories -run TestHistories      plays one seed, and cuts it if it fails
//	PGRUNBOOK_HISTORY_FILE=x.json go test ./internal/histories -run TestHistories  the same for a stored history
//	PGRUNBOOK_HISTORY_SEEDS=1000:1200 go test ./internal/histories -run TestHistories   a range of seeds
//	PGRUNBOOK_HISTORY_SHRINK=20m                                                how long a failure is cut
package histories
