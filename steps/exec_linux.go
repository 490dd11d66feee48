package steps

import "syscall"

// groupAttr makes the command a process group of its own that ends when the runner is killed: a
// switch must not go on after the freeze that it belongs to is gone.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
