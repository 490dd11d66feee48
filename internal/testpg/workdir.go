package testpg

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// workdir is a cluster's private directory. It belongs to this process as long
// as the lock beside it is held, which the kernel ends with the process.
type workdir struct {
	path  string
	locks []*os.File
}

// workBase holds the working directories of all processes of this user. It is
// short, since a unix socket's path has 107 bytes.
func workBase() (string, error) {
	base := os.Getenv("PGRUNBOOK_TEST_DIR")
	if base == "" {
		base = filepath.Join("/tmp", "pgrunbook-testpg-"+strconv.Itoa(os.Getuid()))
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", fmt.Errorf("making the directory for clusters: %w", err)
	}
	st, err := os.Stat(base)
	if err != nil {
		return "", fmt.Errorf("making the directory for clusters: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return "", fmt.Errorf("directory %s belongs to another user: set PGRUNBOOK_TEST_DIR", base)
	}
	return base, nil
}

var sweepOnce sync.Once

// claimed are the directories that this process made and has not removed.
var claimed sync.Map

func newWorkdir(acc account) (*workdir, error) {
	base, err := workBase()
	if err != nil {
		return nil, err
	}
	sweepOnce.Do(func() { sweep(base) })
	path, lock, err := claim(base)
	if err != nil {
		return nil, err
	}
	w := &workdir{path: path, locks: []*os.File{lock}}
	claimed.Store(path, true)
	if err := acc.mkdir(path, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("making a cluster's directory: %w", err), w.remove())
	}
	return w, nil
}

// claim locks a new name, before the directory is made: a directory whose lock
// nobody holds is rubbish to sweep.
func claim(base string) (path string, lock *os.File, err error) {
	for range 10 { // a sweeper may hold a lock file that it sees half made
		var id [4]byte
		if _, err = rand.Read(id[:]); err != nil {
			return "", nil, err
		}
		path = filepath.Join(base, hex.EncodeToString(id[:]))
		if lock, err = tryLock(path + ".lock"); err == nil {
			return path, lock, nil
		}
	}
	return "", nil, fmt.Errorf("claiming a directory in %s: %w", base, err)
}

// elsewhere is the file in a working directory that names a data directory
// outside it.
const elsewhere = "datadir"

// noteData records a data directory outside the working directory, for sweep.
func (w *workdir) noteData(dir string) error {
	if err := os.WriteFile(filepath.Join(w.path, elsewhere), []byte(dir), 0o600); err != nil {
		return fmt.Errorf("recording the data directory: %w", err)
	}
	return nil
}

// remove deletes the directory, then lets its locks go.
func (w *workdir) remove() error {
	err := os.RemoveAll(w.path)
	if err == nil {
		claimed.Delete(w.path)
	}
	for _, f := range w.locks {
		err = errors.Join(err, ignoreClosed(os.Remove(f.Name())), ignoreClosed(f.Close()))
	}
	w.locks = nil
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// reservePort picks a port below the range that the kernel hands out to clients
// and keeps it for this cluster, so that a restart finds it free.
func (w *workdir) reservePort(ctx context.Context) (int, error) {
	const first, count = 20000, 10000
	for range 200 {
		n, err := rand.Int(rand.Reader, big.NewInt(count))
		if err != nil {
			return 0, err
		}
		port := first + int(n.Int64())
		lock, err := tryLock(filepath.Join(filepath.Dir(w.path), fmt.Sprintf("port-%d.lock", port)))
		if err != nil {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			_ = lock.Close()
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		w.locks = append(w.locks, lock)
		return port, nil
	}
	return 0, fmt.Errorf("finding a free port from %d to %d: all tried are taken", first, first+count)
}

// sweep removes what processes that are gone left behind: servers that were
// paused when their owner died, and directories. It is best effort: what cannot
// be removed now is tried again by the next process.
func sweep(base string) {
	locks, err := filepath.Glob(filepath.Join(base, "*.lock"))
	if err != nil {
		return
	}
	for _, path := range locks {
		lock, err := tryLock(path)
		if err != nil {
			continue // its owner lives
		}
		if dir := strings.TrimSuffix(path, ".lock"); !strings.HasPrefix(filepath.Base(dir), "port-") {
			data := filepath.Join(dir, "data")
			if b, err := os.ReadFile(filepath.Join(dir, elsewhere)); err == nil && filepath.Base(string(b)) == "data-"+filepath.Base(dir) {
				data = string(b)
			}
			_ = killAll(data)
			freeShared(data)
			_ = os.RemoveAll(data)
			_ = os.RemoveAll(dir)
		}
		_ = os.Remove(path)
		_ = lock.Close()
	}
}

// serverPids are the processes of the server with this data directory: all of
// them have it as their working directory.
func serverPids(dataDir string) ([]int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && (cwd == dataDir || cwd == dataDir+" (deleted)") {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

func signalAll(dataDir string, sig syscall.Signal) error {
	pids, err := serverPids(dataDir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("sending %s to process %d: %w", sig, pid, err)
		}
	}
	return nil
}

// killAll kills the processes of a server and waits until they are gone.
func killAll(dataDir string) error {
	for range 500 {
		pids, err := serverPids(dataDir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := signalAll(dataDir, syscall.SIGKILL); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("processes of %s do not end", dataDir)
}
