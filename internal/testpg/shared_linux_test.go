package testpg

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A server that is removed, which kills it, leaves no shared memory behind.
func TestRemovedServerLeavesNoSharedMemory(t *testing.T) {
	major, _, err := PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), Options{Major: major})
	if err != nil {
		t.Fatal(err)
	}
	id, ok := sharedMemory(c.DataDir)
	var d unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d); !ok || err != nil {
		t.Errorf("the running server has no segment %d: %v", id, err)
	}
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d); err == nil {
		t.Errorf("segment %d is still there", id)
	}
}
