package testpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Main runs the tests of a package, removes the shared clusters, and fails when something is left
// behind:
//
//	func TestMain(m *testing.M) { testpg.Main(m) }
//
// That is a session, a lock or a prepared transaction on a shared cluster, a directory of a server, a
// file in the temporary folder, or a process. All that the tests start gets a temporary folder of
// this package's own, so it is known by that.
func Main(m interface{ Run() int }) { os.Exit(Run(m)) }

// Run is Main for a package whose TestMain ends the process in another way. It gives the exit code.
func Run(m interface{ Run() int }) int {
	temp, err := ownTemp()
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing the tests:", err)
		return 1
	}
	code := m.Run()
	left := removeShared()
	left = append(left, temp.leftovers(30*time.Second)...)
	if err := temp.remove(); err != nil {
		left = append(left, err.Error())
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind by the tests:\n  %s\n", strings.Join(left, "\n  "))
		return max(code, 1)
	}
	return code
}

// removeShared ends the shared clusters and says what somebody left on them.
func removeShared() (left []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	endIdle(ctx, "")
	shared.Lock()
	defer shared.Unlock()
	for major, c := range shared.clusters {
		on, err := c.leaks(ctx, "", 5*time.Second)
		if err != nil {
			on = append(on, err.Error())
		}
		for _, what := range on {
			left = append(left, fmt.Sprintf("on the shared server %d: %s", major, what))
		}
		if err := c.Remove(); err != nil {
			left = append(left, fmt.Sprintf("removing a test cluster: %v", err))
		}
	}
	return left
}

// tempFolder is where this process and its children make their files. Its lock ends with the process.
type tempFolder struct {
	path string
	lock *os.File
}

const tempLock = "lock"

// ownTemp makes the folder and removes those of test binaries that were killed.
func ownTemp() (*tempFolder, error) {
	prefix := "pgrunbook-" + strings.TrimSuffix(filepath.Base(os.Args[0]), ".test") + "-"
	sweepTemp(filepath.Join(os.TempDir(), prefix+"*"))
	path, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	lock, err := tryLock(filepath.Join(path, tempLock))
	if err == nil {
		err = errors.Join(os.Chmod(path, 0o755), os.Setenv("TMPDIR", path))
	}
	return &tempFolder{path, lock}, err
}

func sweepTemp(pattern string) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return
	}
	for _, path := range paths {
		if _, err := os.Stat(filepath.Join(path, tempLock)); err != nil {
			continue // somebody else's
		}
		if lock, err := tryLock(filepath.Join(path, tempLock)); err == nil {
			_ = os.RemoveAll(path)
			_ = lock.Close()
		}
	}
}

func (f *tempFolder) remove() error {
	err := os.RemoveAll(f.path)
	return errors.Join(err, f.lock.Close())
}

// leftovers are files, processes and servers. What ends by itself, as the child of a killed runner
// does, has time for it.
func (f *tempFolder) leftovers(patience time.Duration) []string {
	left, err := untilEmpty(patience, func() ([]string, error) {
		files, err := f.files()
		return slices.Concat(servers(), processesOf(f.path), files), err
	})
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

// files are those that nobody removes later. A directory with a lock that nobody holds, as a killed
// runner or test binary leaves it, is swept by the next one: here.
func (f *tempFolder) files() (left []string, err error) {
	sweepTemp(filepath.Join(f.path, "pgrunbook-*"))
	entries, err := os.ReadDir(f.path)
	for _, e := range entries {
		if e.Name() != tempLock {
			left = append(left, "file "+filepath.Join(f.path, e.Name()))
		}
	}
	return left, err
}

// servers are clusters, poolers and directories that no test removed.
func servers() (left []string) {
	claimed.Range(func(path, _ any) bool {
		left = append(left, fmt.Sprintf("directory of a server %s", path))
		return true
	})
	return left
}

// processesOf lists processes that work below a folder, whose program is there, or that make their
// temporary files there.
func processesOf(dir string) (left []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, proc := range paths {
		if filepath.Base(proc) == strconv.Itoa(os.Getpid()) {
			continue
		}
		ours := false
		for _, link := range []string{"cwd", "exe"} {
			at, err := os.Readlink(filepath.Join(proc, link))
			ours = ours || err == nil && strings.HasPrefix(at, dir+"/")
		}
		env, err := os.ReadFile(filepath.Join(proc, "environ"))
		if ours = ours || err == nil && bytes.Contains(env, []byte("TMPDIR="+dir)); !ours {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err == nil && len(line) > 0 { // it may just have ended
			left = append(left, fmt.Sprintf("process %s: %s", filepath.Base(proc), bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '})))
		}
	}
	return left
}
