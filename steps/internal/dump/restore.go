package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// RestoreOptions say how entries are restored.
type RestoreOptions struct {
	Mark          string
	TargetMajor   int
	NoOwner       bool // neither owners nor grants: the caller sets them (package's SetOwners, SetGrants)
	NoTablespaces bool
	OneTx         bool // all or nothing; not possible where Atomic says so
}

// Restore makes entries on the target, in their order, and stops at the first error.
func (a *Archive) Restore(ctx context.Context, to *pg.Server, entries []Entry, o RestoreOptions) error {
	if len(entries) == 0 {
		return nil
	}
	list := filepath.Join(a.dir, "list")
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(strconv.Itoa(e.DumpID))
		b.WriteString(";\n")
	}
	if err := os.WriteFile(list, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("writing the list of objects to restore: %w", err)
	}
	args := []string{connection, "--no-password", "--use-list=" + list}
	tolerant := !a.Tools.Atomic(o.TargetMajor)
	if !tolerant {
		args = append(args, "--exit-on-error")
	}
	for flag, on := range map[string]bool{
		"--no-owner": o.NoOwner, "--no-privileges": o.NoOwner, "--no-tablespaces": o.NoTablespaces,
		"--single-transaction": o.OneTx && !tolerant,
	} {
		if on {
			args = append(args, flag)
		}
	}
	s := session{server: to, name: "restore", options: map[string]string{"pgrunbook.mark": o.Mark}}
	_, warned, err := a.Tools.runWarned(ctx, s, "pg_restore", append(args, a.file())...)
	a.Warnings = append(a.Warnings, warned...)
	if tolerant && onlyUnknownSetting(err) {
		return nil
	}
	if err != nil {
		return &engine.Error{Op: "restoring the structure on", Object: to.Address(), Err: refusedCommand(err), Hint: restoreHint(err)}
	}
	return nil
}

// Atomic reports whether these programs can restore to a target in one transaction. pg_restore 17
// and later begin with SET transaction_timeout, which servers before 17 refuse; there, a restore
// goes on after errors, and errors other than that one are found in its output.
func (t Tools) Atomic(targetMajor int) bool { return t.Major < 17 || targetMajor >= 17 }

// onlyUnknownSetting reports whether pg_restore failed for nothing but that setting.
func onlyUnknownSetting(err error) bool {
	var failed *ProgramError
	return errors.As(err, &failed) &&
		strings.Contains(failed.Output, `unrecognized configuration parameter "transaction_timeout"`) &&
		strings.Contains(failed.Output, "errors ignored on restore: 1\n")
}

// lostConnection are pg_restore's words (libpq's) for a session that ended: what it had sent may have
// been committed.
var lostConnection = []string{"server closed the connection", "connection to server", "no connection to the server", "could not receive data", "could not send data"}

// Refused reports that the server refused a statement of a restore, and that nothing else went wrong:
// nothing of it can be committed any more.
func Refused(err error) bool {
	var failed *ProgramError
	return errors.As(err, &failed) && strings.Contains(failed.Output, "could not execute query: ERROR:") &&
		!slices.ContainsFunc(lostConnection, func(words string) bool { return strings.Contains(failed.Output, words) })
}

// command is where pg_restore repeats the statement that was refused; its first line has the name.
var command = regexp.MustCompile(`(?m)^Command was: (.*?)[ (;]*$`)

// refusedCommand puts the statement that the server refused before the program's words.
func refusedCommand(err error) error {
	var failed *ProgramError
	if !errors.As(err, &failed) {
		return err
	}
	m := command.FindStringSubmatch(failed.Output)
	if m == nil {
		return err
	}
	return fmt.Errorf("%s: %w", m[1], err)
}

// restoreHint reads pg_restore's complaint.
func restoreHint(err error) string {
	var failed *ProgramError
	if !errors.As(err, &failed) {
		return ""
	}
	for word, hint := range restoreHints {
		if strings.Contains(failed.Output, word) {
			return hint
		}
	}
	return "Mend the cause on the target and run the same command again."
}

var restoreHints = map[string]string{
	"must be able to SET ROLE": "The target's role must be a member of every owner, or map owners with schema { owners = { ... } }.",
	"must be member of role":   "The target's role must be a member of every owner, or map owners with schema { owners = { ... } }.",
	"role \"":                  "Create the role on the target, or let the runbook do it with schema { roles = \"create\" }.",
	"extension \"":             "Install the extension's package on the target, or exclude the schema that needs it.",
	"permission denied":        "Grant the target's role what the message names; CREATE on the database is needed for schemas.",
	"already exists":           "The target is not empty: drop what is there, or set schema { mode = \"existing\" }.",
	"out of shared memory":     "Raise max_locks_per_transaction on the target.",
	"generation expression":    generatedBelow,
	"be a generated column":    generatedBelow,
	"event trigger":            "An event trigger of the target refuses the definition: disable it until the run is over.",
}

// generatedBelow: see GeneratedApart.
const generatedBelow = "PostgreSQL 16 and newer have no generated column below a plain one. On the source, in one transaction, take the table off its parent (NO INHERIT, or DETACH PARTITION), make the column a plain one (ALTER TABLE ... ALTER COLUMN ... DROP EXPRESSION; 12 has none: add a plain column, copy the values, drop the generated one, rename the new one), and put the table there again; then run the same command again."

// FitsOneTransaction reports whether a restore of n objects in one transaction stays below half of
// the target's lock table (https://www.postgresql.org/docs/current/runtime-config-locks.html).
func FitsOneTransaction(ctx context.Context, conn *pgx.Conn, n int) (bool, error) {
	var room int
	err := conn.QueryRow(ctx, `SELECT current_setting('max_locks_per_transaction')::int * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int) / 2`).Scan(&room)
	if err != nil {
		return false, fmt.Errorf("reading the size of the lock table: %w", err)
	}
	const locksEach = 4 // a table, its row type, its TOAST table and index
	return n*locksEach < room, nil
}
