//go:build !unix

package steps

import "syscall"

func ownSession() *syscall.SysProcAttr { return nil }
