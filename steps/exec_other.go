//go:build unix && !linux

package steps

import "syscall"

// groupAttr makes the command a process group of its own. Only Linux can end it with the runner.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
