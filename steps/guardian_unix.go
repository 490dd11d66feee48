//go:build unix

package steps

import "syscall"

// ownSession keeps signals to the runner's terminal or process group away from the guardian.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
