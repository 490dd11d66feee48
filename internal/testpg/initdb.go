package testpg

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// initdb fills the data directory: from a template in the cache where one fits,
// since copying is several times faster than initdb.
func (c *Cluster) initdb(ctx context.Context) error {
	if err := c.makeData(ctx); err != nil {
		return err
	}
	conf := filepath.Join(c.DataDir, "postgresql.conf")
	f, err := os.OpenFile(conf, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("opening the server's settings: %w", err)
	}
	_, err = f.WriteString("include '" + configFile + "'\n")
	return errors.Join(err, f.Close())
}

func (c *Cluster) makeData(ctx context.Context) error {
	if c.opts.Auth != "trust" { // a password is not for the cache
		return c.runInitdb(ctx, c.DataDir)
	}
	template, err := c.template(ctx)
	if err != nil {
		return err
	}
	if _, err := run(ctx, "/", "cp", "-a", "--reflink=auto", template, c.DataDir); err != nil {
		return fmt.Errorf("copying the template: %w", err)
	}
	return c.newIdentity()
}

// template returns an initialised data directory for these options, making it
// when it is the first of its kind.
func (c *Cluster) template(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "template")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the template directory: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "template.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	// The directory names what went in; checksum and path kinds differ by build, so BinDir is a part.
	sum := crc32.ChecksumIEEE([]byte(c.BinDir + "\x00" + c.opts.Encoding + "\x00" + c.opts.Locale + "\x00" + c.opts.Superuser))
	path := filepath.Join(dir, fmt.Sprintf("%s-%d-%08x", c.Version, c.account.uid, sum))
	if _, err := os.Stat(filepath.Join(path, "PG_VERSION")); err == nil {
		return path, nil
	}
	if err := os.RemoveAll(path + ".new"); err != nil {
		return "", fmt.Errorf("making the template: %w", err)
	}
	if err := c.runInitdb(ctx, path+".new"); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

func (c *Cluster) runInitdb(ctx context.Context, dir string) error {
	if err := c.account.mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	args := []string{"-D", dir, "--no-sync", "-E", c.opts.Encoding, "--locale", c.opts.Locale, "-U", c.Superuser}
	if c.opts.Auth == "trust" {
		args = append(args, "-A", "trust")
	} else {
		pwfile := filepath.Join(c.root.path, "password")
		if err := os.WriteFile(pwfile, []byte(c.opts.Password+"\n"), 0o600); err != nil {
			return fmt.Errorf("writing the password for initdb: %w", err)
		}
		defer func() { _ = os.Remove(pwfile) }()
		if err := c.account.own(pwfile); err != nil {
			return fmt.Errorf("writing the password for initdb: %w", err)
		}
		args = append(args, "-A", "scram-sha-256", "--pwfile", pwfile)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.BinDir, "initdb"), args...)
	cmd.Env, cmd.Dir = serverEnv(), c.root.path
	cmd.SysProcAttr = c.account.attr(syscall.SIGKILL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running initdb: %w\n%s", err, out)
	}
	return nil
}

// newIdentity gives a copied data directory its own system identifier, which
// is how clusters are told apart: the first field of pg_control, covered by a
// CRC-32C that follows the structure (src/include/catalog/pg_control.h), and a
// field of each WAL segment's first page header (XLogLongPageHeaderData).
func (c *Cluster) newIdentity() error {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	id[7] &= 0x7f // shown as a signed bigint
	control := filepath.Join(c.DataDir, "global", "pg_control")
	raw, err := os.ReadFile(control)
	if err != nil {
		return fmt.Errorf("reading pg_control: %w", err)
	}
	at := crcOffset(raw)
	if at < 0 {
		return errors.New("reading pg_control: no checksum that fits")
	}
	copy(raw, id[:])
	binary.NativeEndian.PutUint32(raw[at:], crc32.Checksum(raw[:at], castagnoli))
	if err := overwrite(control, 0, raw); err != nil {
		return err
	}
	segments, err := filepath.Glob(filepath.Join(c.DataDir, "pg_wal", "0*"))
	if err != nil {
		return err
	}
	const sysid = 24 // offset in XLogLongPageHeaderData
	for _, s := range segments {
		if err := overwrite(s, sysid, id[:]); err != nil {
			return err
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crcOffset finds where the structure ends, which differs between majors.
func crcOffset(control []byte) int {
	for at := 64; at+4 <= min(len(control), 1024); at += 4 {
		if binary.NativeEndian.Uint32(control[at:]) == crc32.Checksum(control[:at], castagnoli) {
			return at
		}
	}
	return -1
}

// overwrite changes bytes in place, keeping owner and mode.
func overwrite(path string, offset int64, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("changing %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.WriteAt(b, offset)
	return err
}
