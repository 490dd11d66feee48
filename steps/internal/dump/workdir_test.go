package dump

import (
	"os"
	"testing"
)

// What a killed runner left is removed by the next one; what a living one uses is not.
func TestWorkDirSweepsTheDead(t *testing.T) {
	parent := t.TempDir()
	living, err := newWorkDir(parent, "x-")
	if err != nil {
		t.Fatal(err)
	}
	dead, err := newWorkDir(parent, "x-")
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does when a process dies
		t.Fatal(err)
	}
	third, err := newWorkDir(parent, "x-")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		d    *workDir
		want bool
	}{{living, true}, {dead, false}, {third, true}} {
		if _, err := os.Stat(c.d.path); (err == nil) != c.want {
			t.Errorf("%s is there: %v, want %v", c.d.path, err == nil, c.want)
		}
	}
	if err := third.remove(); err != nil {
		t.Fatal(err)
	}
	if err := living.remove(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
