package pg

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// F14: the socket of every session has our own keepalives and our own bound for data that nobody
// acknowledges, read back from the kernel; on the server's side too, so that locks do not outlive the
// runner's machine.
func TestF14OwnKeepalives(t *testing.T) {
	s := newServer(t, Config{URL: testpg.NewDB(t, testpg.Shared(t, testMajor)), RunID: "r1"})
	for name, c := range map[string]struct {
		use                            Use
		idle, interval, count, unacked int // unacked in ms
	}{
		"a session":         {Use{Name: "pass"}, 10, 5, 3, 60_000},
		"one with the hold": {Use{Name: "hold", Hold: true}, 1, 1, 3, 3_000},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t, s, c.use)
			watched, ok := conn.PgConn().Conn().(*watchedConn)
			if !ok {
				t.Fatalf("the connection is a %T", conn.PgConn().Conn())
			}
			tcp, ok := watched.Conn.(*net.TCPConn)
			if !ok {
				t.Fatalf("the connection is a %T", watched.Conn)
			}
			raw, err := tcp.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []struct {
				what                string
				level, option, want int
			}{
				{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, c.idle},
				{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, c.interval},
				{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, c.count},
				{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, c.unacked},
			} {
				var got int
				var optErr error
				if err := raw.Control(func(fd uintptr) { got, optErr = unix.GetsockoptInt(int(fd), o.level, o.option) }); err != nil || optErr != nil {
					t.Fatal(err, optErr)
				}
				if got != o.want {
					t.Errorf("%s is %d, want %d", o.what, got, o.want)
				}
			}
			for setting, want := range map[string]string{"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"} {
				if got := show(t, conn, "SELECT setting FROM pg_settings WHERE name = $1", setting); got != want {
					t.Errorf("%s of the server is %s, want %s", setting, got, want)
				}
			}
		})
	}
}
