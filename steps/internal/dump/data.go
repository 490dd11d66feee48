package dump

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Data is the rows of some tables in pg_dump's directory format.
type Data struct {
	Tools Tools
	dir   string
	work  *workDir
}

// DataOptions say how rows are dumped and restored.
type DataOptions struct {
	Tables      []scope.Table
	Jobs        int    // Defaults to 1
	Dir         string // where the directory is made. Defaults to the system's temporary one
	Mark        string // the run's mark: our gate lets the restore pass
	ReplicaRole bool   // set session_replication_role = replica; false where only a helper function may
	TargetMajor int    // the target's major version
}

// DumpData writes the rows of tables, partition trees with all their members, into a new directory
// that only this user can read. It holds one snapshot for its whole time.
func DumpData(ctx context.Context, t Tools, from *pg.Server, o DataOptions) (_ *Data, err error) {
	if len(o.Tables) == 0 {
		return nil, errors.New("dumping rows: no tables were named")
	}
	d := &Data{Tools: t}
	if d.work, err = newWorkDir(o.Dir, "pgrunbook-data-"); err != nil {
		return nil, err
	}
	d.dir = d.work.path
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	args := []string{connection, "--format=directory", "--data-only", "--no-password", "--lock-wait-timeout=60s", "--jobs=" + strconv.Itoa(max(1, o.Jobs)), "--file=" + d.path()}
	for _, tbl := range o.Tables {
		args = append(args, "--table="+pg.Name(tbl.Schema, tbl.Name.Name))
		for _, m := range tbl.Members {
			args = append(args, "--table="+pg.Name(m.Schema, m.Name.Name))
		}
	}
	s := session{server: from, name: "dump data", options: map[string]string{"row_security": "off"}}
	if _, err := t.run(ctx, s, "pg_dump", args...); err != nil {
		if full := d.work.full(err); full != nil {
			return nil, full
		}
		return nil, &engine.Error{Op: "dumping rows of", Object: from.Address(), Err: err, Hint: "The connecting role needs SELECT on these tables."}
	}
	return d, nil
}

// Restore loads the rows. The tables hold neither keys, foreign keys nor triggers but our gate at
// that time, and the mark opens the gate, so a role that may set session_replication_role only
// through a helper function (which pg_restore cannot call) needs no replica role here.
func (d *Data) Restore(ctx context.Context, to *pg.Server, o DataOptions) error {
	options := map[string]string{"pgrunbook.mark": o.Mark}
	if o.ReplicaRole {
		options["session_replication_role"] = "replica"
	}
	args := []string{connection, "--no-password", "--data-only", "--jobs=" + strconv.Itoa(d.Tools.RestoreJobs(o.Jobs, o.TargetMajor)), d.path()}
	_, err := d.Tools.run(ctx, session{server: to, name: "restore data", options: options}, "pg_restore", args...)
	if err == nil || !d.Tools.Atomic(o.TargetMajor) && onlyUnknownSetting(err) {
		return nil
	}
	return &engine.Error{Op: "restoring rows on", Object: to.Address(), Err: err, Hint: "Empty the tables that the message names and run the same command again."}
}

// RestoreJobs is in how many sessions a restore to such a server writes: in one where each would begin with an error that
// has to be told from others.
func (t Tools) RestoreJobs(jobs, targetMajor int) int {
	if !t.Atomic(targetMajor) {
		return 1
	}
	return max(1, jobs)
}

// Close removes the directory.
func (d *Data) Close() error {
	if err := d.work.remove(); err != nil {
		return fmt.Errorf("removing the dump: %w", err)
	}
	return nil
}

func (d *Data) path() string { return filepath.Join(d.dir, "data") }
