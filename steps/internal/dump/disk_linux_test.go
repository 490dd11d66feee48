package dump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// fullDisk gives a directory on a disk that holds no byte more.
func fullDisk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mounting a tmpfs for the tests of a full disk (run them as root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting %s: %v", disk, err)
		}
	})
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	return disk
}

// F06: the disk of the runner's own machine is full, or takes no writes. The dump fails and says
// where; on another directory it is made.
func TestF06FullOrReadOnlyDisk(t *testing.T) {
	tl := tools(t, 15, 18)
	src := server(t, 15, "source")
	conn := connect(t, src)
	run(t, conn, "CREATE TABLE public.t (id int, v text); INSERT INTO public.t SELECT g, md5(g::text) FROM generate_series(1, 1000) g")
	disk := fullDisk(t)
	structure := func() error {
		a, err := Dump(testContext(t), tl, src, Options{Scope: &scope.Scope{}})
		if err == nil {
			err = a.Close()
		}
		return err
	}
	rows := func() error {
		d, err := DumpData(testContext(t), tl, src, DataOptions{Jobs: 1, Tables: []scope.Table{{Name: scope.Name{Schema: "public", Name: "t"}}}})
		if err == nil {
			err = d.Close()
		}
		return err
	}
	for name, dump := range map[string]func() error{"the structure": structure, "rows": rows} {
		t.Run(name, func(t *testing.T) {
			another := t.TempDir()
			t.Setenv("TMPDIR", disk)
			err := dump()
			if err == nil || !strings.Contains(err.Error(), "No space left on device") ||
				!strings.Contains(err.Error(), disk) || !strings.Contains(engine.HintOf(err), "TMPDIR") {
				t.Errorf("on a full disk: %v; hint: %s", err, engine.HintOf(err))
			}
			if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			err = dump()
			if err == nil || !strings.Contains(err.Error(), "read-only file system") || !strings.Contains(err.Error(), disk) || !strings.Contains(engine.HintOf(err), "TMPDIR") {
				t.Errorf("on a disk that takes no writes: %v; hint: %s", err, engine.HintOf(err))
			}
			if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, ""); err != nil {
				t.Fatal(err)
			}
			left, err := filepath.Glob(filepath.Join(disk, "*"))
			if err != nil || len(left) != 1 {
				t.Errorf("left on the disk: %v %v", left, err)
			}
			t.Setenv("TMPDIR", another)
			if err := dump(); err != nil {
				t.Errorf("on another disk: %v", err)
			}
		})
	}
}

// F06: older programs write a short dump to a full disk and say nothing; it is not there to be read.
func TestF06ShortDumpOnAFullDisk(t *testing.T) {
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			tl, src, disk := tools(t, major, major), server(t, 15, "source"), fullDisk(t)
			t.Setenv("TMPDIR", disk)
			_, err := Dump(testContext(t), tl, src, Options{Scope: &scope.Scope{}})
			if err == nil || tl.Major != major || !strings.Contains(err.Error(), disk) || !strings.Contains(engine.HintOf(err), "TMPDIR") {
				t.Errorf("pg_dump %d: %v; hint: %s", tl.Major, err, engine.HintOf(err))
			}
		})
	}
}
