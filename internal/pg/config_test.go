package pg

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestKeywords(t *testing.T) {
	const base = "postgresql://u@h.example.com:5433/d?"
	tests := []struct {
		query    string
		warnings int
		err      string
	}{
		{"", 0, ""},
		{"sslmode=require&connect_timeout=3&krbsrvname=x&application_name=app&client_encoding=auto&options=-c%20geqo%3Doff", 0, ""},
		{"gssencmode=prefer", 0, ""},
		{"gssencmode=require", 0, "gssencmode"},
		{"sslcrl=/etc/crl.pem", 0, "sslcrl"},
		{"sslcrldir=", 0, ""},
		{"hostaddr=10.0.0.1", 0, ""},
		{"hostaddr=10.0.0.1,10.0.0.2", 0, "hostaddr"},
		{"keepalives=1&keepalives_idle=9&keepalives_interval=9&keepalives_count=9&tcp_user_timeout=5", 5, ""},
		{"load_balance_hosts=random", 1, ""},
		{"load_balance_hosts=disable", 0, ""},
		{"fallback_application_name=x", 1, ""},
		{"ssl_min_protocol_version=TLSv1.3", 0, ""},
		{"ssl_min_protocol_version=SSLv9", 0, "ssl_min_protocol_version"},
		{"requirepeer=postgres", 0, "requirepeer"},
		{"replication=database", 0, "replication"},
		{"pgbouncer=true&schema=public", 0, "pgbouncer, schema"},
		{"pool_max_conns=4", 0, "pool_max_conns"},
		{"target_session_attrs=nonsense", 0, "target_session_attrs"},
		{"sslmode=verify-full&sslrootcert=/nowhere/ca.pem", 0, "/nowhere/ca.pem"},
	}
	for _, tt := range tests {
		// It is found without the files that it names, in a list of keywords too.
		for _, url := range []string{base + tt.query, "host=h dbname=d " + strings.NewReplacer("&", " ", "%20", "\\ ", "%3D", "=").Replace(tt.query)} {
			if err := CheckURL(url); (err != nil) != (tt.err != "" && tt.err != "/nowhere/ca.pem") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: CheckURL says %v", url, err)
			}
		}
		s, err := New(Config{Side: "source", URL: base + tt.query})
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want one naming %s", tt.query, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.query, err)
			continue
		}
		if len(s.Warnings()) != tt.warnings {
			t.Errorf("%s: warnings %q", tt.query, s.Warnings())
		}
		for key := range s.conf.RuntimeParams {
			if key != "options" {
				t.Errorf("%s: %s would go to the server", tt.query, key)
			}
		}
	}
}

func TestMinTLS(t *testing.T) {
	s := newServer(t, Config{URL: "postgresql://u@h/d?ssl_min_protocol_version=TLSv1.3"})
	if s.conf.TLSConfig.MinVersion != tls.VersionTLS13 {
		t.Errorf("min version is %x", s.conf.TLSConfig.MinVersion)
	}
}

func TestHostaddrAndHostsAreUsed(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	url := fmt.Sprintf("host=db.invalid hostaddr=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable", c.Port)
	connect(t, newServer(t, Config{URL: url}), Use{Hold: true})

	several := newServer(t, Config{URL: fmt.Sprintf("postgresql://postgres@127.0.0.1:1,127.0.0.1:%d/postgres?target_session_attrs=read-write&sslmode=disable", c.Port)})
	connect(t, several, Use{})
	if got, want := several.Address(), fmt.Sprintf("127.0.0.1:1,127.0.0.1:%d/postgres", c.Port); got != want {
		t.Errorf("address %s, want %s", got, want)
	}
	socket := newServer(t, Config{URL: fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", c.SocketDir, c.Port)})
	connect(t, socket, Use{Hold: true})
	if !socket.EffectiveTLS().Socket {
		t.Errorf("TLS of a socket: %+v", socket.EffectiveTLS())
	}
}

func TestEffectiveTLS(t *testing.T) {
	for query, want := range map[string]string{
		"": "prefer", "sslmode=prefer": "prefer", "sslmode=allow": "allow", "sslmode=disable": "disable", "sslmode=require": "require",
		"sslmode=verify-full": "verify-full",
	} {
		s := newServer(t, Config{URL: "postgresql://u@a.example.com,b.example.com/d?" + query})
		if got := s.EffectiveTLS(); got.Mode != want || got.Verified() != (want == "verify-full") {
			t.Errorf("%s: %+v", query, got)
		}
	}
	if s := newServer(t, Config{URL: "host=127.0.0.1"}); !s.EffectiveTLS().Verified() {
		t.Error("loopback is not trusted")
	}
}

func TestEnvironmentCountsForTheSideThatInherits(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	t.Setenv("PGHOST", "127.0.0.1")
	t.Setenv("PGPORT", fmt.Sprint(c.Port))
	t.Setenv("PGUSER", "postgres")
	t.Setenv("PGDATABASE", "postgres")
	t.Setenv("PGSSLMODE", "disable")
	t.Setenv("PGHOSTADDR", "10.1.2.3")
	t.Setenv("PGSERVICE", "")
	in := newServer(t, Config{InheritEnv: true})
	connect(t, in, Use{})
	if diff := cmp.Diff([]string{"PGHOSTADDR is set in the environment and not supported: it does not count"}, in.Warnings()); diff != "" {
		t.Error(diff)
	}
	out := newServer(t, Config{URL: "postgresql://other.example.com/d"})
	if out.conf.User == "postgres" && os.Getenv("USER") != "postgres" || out.conf.Port != 5432 || out.EffectiveTLS().Mode != "prefer" {
		t.Errorf("the environment counted: %s", out.Address())
	}
	if len(out.Warnings()) != 1 || !strings.Contains(out.Warnings()[0], "PGDATABASE, PGHOST, PGHOSTADDR, PGPORT, PGSSLMODE, PGUSER") {
		t.Errorf("warnings %q", out.Warnings())
	}
	if os.Getenv("PGHOST") != "127.0.0.1" {
		t.Error("the environment was not put back")
	}
	for _, cfg := range []Config{{Side: "source"}, {Side: "source", URL: "host=x", Service: "y"}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

const canary = "c4n4ry-s3cret"

// TestNoErrorHoldsThePassword goes through every way that a password comes in and fails there.
func TestNoErrorHoldsThePassword(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor, Auth: "scram", Password: "right"})
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := write("bad.conf", "[erp]\nhost=127.0.0.1\n"+canary+"\n", 0o600)
	service := write("service.conf", fmt.Sprintf("[erp]\nhost=127.0.0.1\nport=%d\nuser=postgres\ndbname=postgres\npassword=%s\nsslmode=disable\n", c.Port, canary), 0o600)
	passfile := write("pgpass", fmt.Sprintf("127.0.0.1:%d:*:postgres:%s\n", c.Port, canary), 0o644)
	leaky := write("leaky.sh", "#!/bin/sh\necho "+canary+"\necho "+canary+" >&2\nexit 3\n", 0o700)
	slow := write("slow.sh", "#!/bin/sh\necho "+canary+"\nexec sleep 60\n", 0o700)
	at := fmt.Sprintf("127.0.0.1:%d/postgres", c.Port)
	tests := map[string]Config{
		"wrong password":           {URL: "postgresql://postgres:" + canary + "@" + at},
		"refused":                  {URL: "postgresql://postgres:" + canary + "@127.0.0.1:1/postgres"},
		"no such host":             {URL: "postgresql://postgres:" + canary + "@no.such.host.invalid/postgres"},
		"tls against a plain port": {URL: "postgresql://postgres:" + canary + "@" + at + "?sslmode=require"},
		"unescaped at":             {URL: "postgresql://postgres:x@" + canary + "@" + at},
		"unescaped slash again":    {URL: "postgresql://postgres:1/" + canary + "@" + at},
		"unescaped slash":          {URL: "postgresql://postgres:" + canary + "/x@" + at},
		"unescaped colon":          {URL: "postgresql://postgres:ab:" + canary + "@" + at + ":x"},
		"unescaped percent":        {URL: "postgresql://postgres:" + canary + "%zz@" + at},
		"password as port":         {URL: "postgresql://127.0.0.1:" + canary},
		"bad port":                 {URL: "host=127.0.0.1 port=x password=" + canary},
		"keyword list":             {URL: "host=127.0.0.1 port=1 password = '" + canary + "' sslmode=disable"},
		"broken keyword list":      {URL: "host=127.0.0.1 password='" + canary},
		"backquotes":               {URL: "host=127.0.0.1 password='" + canary + "`: invalid port " + canary + "' port=x"},
		"typo in the keyword":      {URL: "host=127.0.0.1 passwort=" + canary},
		"swallowed by another":     {URL: "host=127.0.0.1 target_session_attrs=" + canary},
		"sslpassword":              {URL: "postgresql://127.0.0.1/d?sslmode=require&sslpassword=" + canary + "&sslcert=/no/such&sslkey=/no/such"},
		"missing service":          {URL: "service=nope servicefile=" + service + " password=" + canary},
		"service file":             {URL: "service=erp servicefile=" + service},
		"broken service file":      {URL: "service=erp servicefile=" + bad},
		"passfile":                 {URL: "postgresql://postgres@" + at + "?sslmode=disable&passfile=" + passfile},
		"password command":         {URL: "postgresql://postgres@" + at, PasswordCommand: []string{"echo", canary}},
		"failing command":          {URL: "postgresql://postgres@" + at, PasswordCommand: []string{leaky, canary}},
		"slow command":             {URL: "postgresql://postgres@" + at, PasswordCommand: []string{slow}, PasswordTimeout: 100 * time.Millisecond},
		"missing command":          {URL: "postgresql://postgres@" + at, PasswordCommand: []string{"./no-such-command", canary}, Dir: dir},
		"empty command":            {URL: "postgresql://postgres@" + at, PasswordCommand: []string{"true", canary}},
		"both":                     {URL: "password=" + canary, Service: canary},
	}
	for name, cfg := range tests {
		cfg.Side = "source"
		s, err := New(cfg)
		if err == nil {
			for _, w := range s.Warnings() {
				if strings.Contains(w, canary) {
					t.Errorf("%s: warning %q", name, w)
				}
			}
			_, err = s.Connect(testContext(t), Use{})
		}
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		t.Logf("%s: %v", name, err)
		for e := []error{err}; len(e) > 0; e = e[1:] {
			if text := fmt.Sprintf("%v %+v", e[0], e[0]); strings.Contains(text, canary) {
				t.Errorf("%s: the password is in %q", name, text)
			}
			switch u := e[0].(type) { //nolint:errorlint // walks the tree itself
			case interface{ Unwrap() error }:
				if next := u.Unwrap(); next != nil {
					e = append(e, next)
				}
			case interface{ Unwrap() []error }:
				e = append(e, u.Unwrap()...)
			}
		}
	}
	good := newServer(t, Config{URL: "postgresql://postgres@" + at + "?sslmode=disable", PasswordCommand: []string{"printf", "right\\r\\nsecond line"}})
	connect(t, good, Use{})
}

func TestPassfileForAllToRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", path)
	s := newServer(t, Config{URL: "host=h"})
	if len(s.Warnings()) != 1 || !strings.Contains(s.Warnings()[0], "chmod 600") {
		t.Errorf("warnings %q", s.Warnings())
	}
}

// TestSilentServer: a server that accepts and says nothing ends in the connect timeout.
func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	s := newServer(t, Config{URL: "postgresql://u@" + l.Addr().String() + "/d?sslmode=disable&connect_timeout=2"})
	if _, err := s.Connect(testContext(t), Use{}); err == nil {
		t.Error("connected to nothing")
	}
}

// The driver tries each address of a host, with TLS and without, and says what came of it each time.
func TestUnreachableIsSaidOnce(t *testing.T) {
	for text, want := range map[string]string{
		"h:1 (h): dial error: dial tcp h:1: connect: connection refused\nh:1 (h): dial error: dial tcp h:1: connect: connection refused":                       "connect: connection refused",
		"127.0.0.1:1 (h): dial error: dial tcp 127.0.0.1:1: connect: connection refused\n[::1]:1 (h): dial error: dial tcp [::1]:1: connect: no route to host": "127.0.0.1:1: connect: connection refused; [::1]:1: connect: no route to host",
		"/run/pg/.s.PGSQL.5432 (/run/pg): dial error: dial unix /run/pg/.s.PGSQL.5432: connect: no such file or directory":                                     "/run/pg/.s.PGSQL.5432: connect: no such file or directory",
		"hostname resolving error: lookup h: no such host\nhostname resolving error: lookup h: no such host":                                                   "hostname resolving error: lookup h: no such host",
		"h:1 (h): tls error: server refused TLS connection\nh:1 (h): failed SASL auth: FATAL: password authentication failed (SQLSTATE 28P01)":                 "failed SASL auth: FATAL: password authentication failed (SQLSTATE 28P01)",
		"h:1 (h): tls error: server refused TLS connection":                                                                                                    "tls error: server refused TLS connection: its ssl is off; turn it on there, or say sslmode=disable in the connection string where the way is safe",
		"h:1 (h): server error: FATAL: no pg_hba.conf entry (SQLSTATE 28000)":                                                                                  "server error: FATAL: no pg_hba.conf entry (SQLSTATE 28000)",
		"[::1]:1 (h): server error: FATAL: x (SQLSTATE 28000)":                                                                                                 "[::1]:1: server error: FATAL: x (SQLSTATE 28000)",
	} {
		if got := tried(text, "h:1/db"); got != want {
			t.Errorf("%q is said as %q, want %q", text, got, want)
		}
	}
}
