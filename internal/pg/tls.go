package pg

import (
	"crypto/tls"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// TLS describes how a side is reached.
type TLS struct {
	Mode     string // disable, allow, prefer, require, verify-ca or verify-full
	Socket   bool   // a Unix socket: TLS is not used, nothing leaves the machine
	Loopback bool
}

// Verified reports whether nobody on the way can read or change the traffic.
func (t TLS) Verified() bool { return t.Mode == "verify-full" || t.Socket || t.Loopback }

// String gives "sslmode verify-full", "sslmode prefer on loopback" or "Unix socket".
func (t TLS) String() string {
	switch {
	case t.Socket:
		return "Unix socket"
	case t.Loopback:
		return "sslmode " + t.Mode + " on loopback"
	}
	return "sslmode " + t.Mode
}

// EffectiveTLS gives the sslmode that is in effect after defaults, environment and service file
// (https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION).
func (s *Server) EffectiveTLS() TLS {
	c := s.conf.Config
	t := TLS{Socket: strings.HasPrefix(c.Host, "/"), Loopback: isLoopback(c.Host)}
	for _, f := range c.Fallbacks {
		if f.Host != c.Host {
			t.Socket, t.Loopback = t.Socket && strings.HasPrefix(f.Host, "/"), t.Loopback && isLoopback(f.Host)
		}
	}
	t.Mode = tlsMode(c)
	return t
}

func tlsMode(c pgconn.Config) string {
	var next *pgconn.FallbackConfig
	for _, f := range c.Fallbacks {
		if f.Host == c.Host && f.Port == c.Port {
			next = f
			break
		}
	}
	switch {
	case c.TLSConfig == nil && next != nil && next.TLSConfig != nil:
		return "allow"
	case c.TLSConfig == nil:
		return "disable"
	case next != nil && next.TLSConfig == nil:
		return "prefer"
	}
	return verification(c.TLSConfig)
}

func verification(c *tls.Config) string {
	switch {
	case !c.InsecureSkipVerify:
		return "verify-full"
	case c.VerifyPeerCertificate != nil || c.VerifyConnection != nil:
		return "verify-ca"
	}
	return "require"
}

func isLoopback(host string) bool {
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}
