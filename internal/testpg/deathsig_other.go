//go:build !linux

package testpg

import "syscall"

// dieWithParent has no equivalent here: a killed process leaves its servers to the next one's sweep.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
