package pg

import (
	"context"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// liveness says how fast a silent network is noticed.
type liveness struct {
	idle, interval time.Duration
	count          int
	unacked        time.Duration // TCP_USER_TIMEOUT
}

// The hold must learn within seconds that its server is out of reach. Sessions that move bulk
// data may not be as strict: TCP_USER_TIMEOUT also counts while the peer's window is closed, and a
// target that waits for its disk closes it.
var (
	strict  = liveness{idle: time.Second, interval: time.Second, count: 3, unacked: 3 * time.Second}
	patient = liveness{idle: 10 * time.Second, interval: 5 * time.Second, count: 3, unacked: time.Minute}
)

// dial makes the session's TCP connection with our own keepalives, whatever the system has, and
// under the eyes of w.
func dial(conf *pgx.ConnConfig, use Use, w *watch) {
	l := patient
	if use.Hold {
		l = strict
	}
	d := &net.Dialer{
		Timeout:         conf.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: l.idle, Interval: l.interval, Count: l.count},
		Control: func(network, _ string, c syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			return setUserTimeout(c, l.unacked)
		},
	}
	conf.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil || network == "unix" {
			return conn, err
		}
		return w.add(conn), nil
	}
}
