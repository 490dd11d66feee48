//go:build !linux

package pg

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing where the system has no TCP_USER_TIMEOUT; keepalives remain.
func setUserTimeout(syscall.RawConn, time.Duration) error { return nil }
