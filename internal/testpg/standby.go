package testpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Standby makes a streaming standby of a running cluster: a copy of its files
// under backup mode (PostgreSQL docs, 25.3.3), since pg_basebackup is not in
// every installation. It has the primary's settings and its own port, is named
// name in pg_stat_replication, and keeps WAL on the primary through a slot of
// that name.
func (c *Cluster) Standby(ctx context.Context, name string) (*Cluster, error) {
	o := c.opts
	o.Settings = maps.Clone(o.Settings)
	s, err := prepare(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("making standby %s: %w", name, err)
	}
	if err = s.copyFrom(ctx, c, name); err == nil {
		err = s.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making standby %s: %w", name, err), s.Remove())
	}
	return s, nil
}

func (c *Cluster) copyFrom(ctx context.Context, primary *Cluster, name string) error {
	conn, err := pgx.Connect(ctx, primary.ConnString())
	if err != nil {
		return fmt.Errorf("connecting to the primary: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	begin, end := "SELECT pg_catalog.pg_backup_start($1, true)::text", "SELECT labelfile FROM pg_catalog.pg_backup_stop(false)"
	if primary.Major < 15 {
		begin, end = "SELECT pg_catalog.pg_start_backup($1, true, false)::text", "SELECT labelfile FROM pg_catalog.pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_create_physical_replication_slot($1, true)", name); err != nil {
		return fmt.Errorf("making the replication slot: %w", err)
	}
	if _, err := conn.Exec(ctx, begin, name); err != nil {
		return fmt.Errorf("starting the backup: %w", err)
	}
	if err := copyLive(primary.DataDir, c.DataDir); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, end).Scan(&label); err != nil {
		return fmt.Errorf("stopping the backup: %w", err)
	}
	files := map[string]string{"backup_label": label}
	info := primary.primaryConninfo(name)
	if c.Major >= 12 {
		files["standby.signal"] = ""
		if c.opts.Settings == nil {
			c.opts.Settings = map[string]string{}
		}
		c.opts.Settings["primary_conninfo"], c.opts.Settings["primary_slot_name"] = info, name
	} else {
		files["recovery.conf"] = "standby_mode = on\nprimary_conninfo = '" + strings.ReplaceAll(info, "'", "''") + "'\nprimary_slot_name = '" + name + "'\n"
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(c.DataDir, file), []byte(text), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
	}
	return c.account.own(c.DataDir)
}

// primaryConninfo is in libpq's keyword form, with values quoted as it wants.
func (c *Cluster) primaryConninfo(name string) string {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	s := fmt.Sprintf("host=127.0.0.1 port=%d user='%s' application_name='%s'", c.Port, quote.Replace(c.Superuser), quote.Replace(name))
	if c.opts.Password != "" {
		s += " password='" + quote.Replace(c.opts.Password) + "'"
	}
	return s
}

// copyLive copies a data directory in use. Files may vanish or change meanwhile;
// replay of the WAL since the backup's start mends that.
func copyLive(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		top, below, _ := strings.Cut(rel, string(filepath.Separator))
		switch {
		case d.IsDir():
			if below != "" && (top == "pg_wal" || top == "pg_replslot") && below != "archive_status" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case top == "pg_wal" || top == "pg_replslot" || rel == "postmaster.pid" || rel == "postmaster.opts" || !d.Type().IsRegular():
			return nil
		}
		return copyFile(path, filepath.Join(to, rel))
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
