package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// ownSchema holds everything of ours; it is never dumped.
const ownSchema = "pgrunbook"

// Archive is the structure of one database in pg_dump's custom format, in a private directory.
type Archive struct {
	Tools Tools
	Pre   []Entry // what must exist before rows, in the order of restoring, without what is left out
	Post  []Entry // the rest, likewise
	Left  []Left  // what an excluded table or schema drags along
	Kept  []Entry // schemas that the target had already and whose rights are ours to set

	Warnings []string // of the programs

	dir string

	work *workDir
}

// Options say what is dumped.
type Options struct {
	Scope *scope.Scope
	Mark  string // the run's mark, so that our own triggers let our sessions pass
}

// Dump writes the definitions of every object that the scope does not exclude into a new directory
// that only this user can read, and lists them. Close removes the directory.
//
// Publications, subscriptions and security labels are not carried: a subscription that starts on
// both servers takes every change twice, and a label needs its provider.
func Dump(ctx context.Context, t Tools, from *pg.Server, o Options) (_ *Archive, err error) {
	a := &Archive{Tools: t}
	if a.work, err = newWorkDir("", "pgrunbook-dump-"); err != nil {
		return nil, err
	}
	a.dir = a.work.path
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	args := []string{
		connection, "--format=custom", "--schema-only", "--no-password", "--lock-wait-timeout=60s",
		"--no-publications", "--no-subscriptions", "--no-security-labels", "--file=" + a.file(),
	}
	excluded, err := a.excludeArgs(o.Scope)
	if err != nil {
		return nil, err
	}
	if _, a.Warnings, err = t.runWarned(ctx, session{server: from, name: "dump"}, "pg_dump", append(args, excluded...)...); err != nil {
		if full := a.work.full(err); full != nil {
			return nil, full
		}
		return nil, &engine.Error{
			Op: "dumping the structure of", Object: from.Address(), Err: err,
			Hint: "The connecting role needs SELECT on every table (LOCK TABLE ... IN ACCESS SHARE MODE) and USAGE on every schema in scope.",
		}
	}
	if err := a.list(ctx); err != nil {
		return nil, a.work.unread(err)
	}
	conn, err := from.Connect(ctx, pg.Use{Name: "dump", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return a, a.leaveOut(ctx, conn, o.Scope)
}

// Close removes the archive.
func (a *Archive) Close() error {
	if err := a.work.remove(); err != nil {
		return fmt.Errorf("removing the dump: %w", err)
	}
	return nil
}

func (a *Archive) file() string { return filepath.Join(a.dir, "schema.dump") }

// excludeArgs writes the scope's exclusions. Quoted parts of a pattern are literal
// (https://www.postgresql.org/docs/current/app-psql.html#APP-PSQL-PATTERNS). Long lists go into a
// filter file, which pg_dump 17 and later read, since an argument list has a limit.
func (a *Archive) excludeArgs(s *scope.Scope) ([]string, error) {
	args := []string{"--exclude-schema=" + pgx.Identifier{ownSchema}.Sanitize()}
	var filter strings.Builder
	for _, schema := range s.ExcludedSchemas {
		args = append(args, "--exclude-schema="+pgx.Identifier{schema}.Sanitize())
		fmt.Fprintf(&filter, "exclude schema %s\n", pgx.Identifier{schema}.Sanitize())
	}
	for _, t := range s.ExcludedTables {
		args = append(args, "--exclude-table="+pg.Name(t.Schema, t.Name))
		fmt.Fprintf(&filter, "exclude table %s\n", pg.Name(t.Schema, t.Name))
	}
	const many = 2000
	if len(args) <= many || a.Tools.Major < 17 {
		return args, nil
	}
	path := filepath.Join(a.dir, "filter")
	if err := os.WriteFile(path, []byte(filter.String()), 0o600); err != nil {
		return nil, fmt.Errorf("writing the list of what is excluded: %w", err)
	}
	return []string{args[0], "--filter=" + path}, nil
}
