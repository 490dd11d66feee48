package faults_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// authority signs certificates of servers.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes a certificate, the authority's own where there is none yet.
func (a *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// certify gives a server a certificate of this authority, which sessions from now on see.
func (a *authority) certify(c *testpg.Cluster) {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "the target"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	st, err := os.Stat(c.DataDir)
	if err != nil {
		a.t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	for name, text := range map[string][]byte{"server.crt": certificatePEM(cert), "server.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		path := filepath.Join(c.DataDir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			a.t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			a.t.Fatal(err)
		}
	}
	if err := c.Configure(a.t.Context(), map[string]string{"ssl": "on"}); err != nil {
		a.t.Fatal(err)
	}
}

// TestF21TLS gives the target a certificate of another authority, turns its TLS off, and gives the program's role
// another client_encoding, in mid-run. Over a connection that is not what the runbook asks for nothing goes on: it stops with
// the cause, and goes on when that is mended. An encoding is not ours to follow.
func TestF21TLS(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor := majors(t)
	clusters := [2]*testpg.Cluster{testpg.Shared(t, sourceMajor), testpg.StartT(t, testpg.Options{Major: targetMajor})}
	role := fmt.Sprintf("mover_%d", os.Getpid())
	t.Cleanup(func() { // when its databases are gone
		if err := clusters[0].Exec(context.Background(), "postgres", "DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	r := newRigOn(t, testpg.NewDB(t, clusters[0]), testpg.NewDB(t, clusters[1]))
	r.sql(r.source, `INSERT INTO app.item (name, net) SELECT 'żółw ' || g || ' 🐢', 1 FROM generate_series(1, 300) g`)
	good, other := newAuthority(t, "good"), newAuthority(t, "other")
	root := filepath.Join(r.dir, "root.crt")
	r.must(os.WriteFile(root, certificatePEM(good.cert), 0o600))
	good.certify(clusters[1])
	for i, direct := range []string{r.source, r.target} {
		r.must(clusters[i].Exec(t.Context(), "postgres", "CREATE ROLE "+role+" SUPERUSER LOGIN"))
		u, err := url.Parse(direct)
		r.must(err)
		u.User = url.User(role)
		if i == 1 {
			u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}}.Encode()
		}
		r.via[i] = u.String()
	}
	out := func() {
		for _, c := range clusters {
			r.must(c.Exec(t.Context(), "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+role+"'"))
		}
	}
	ssl := func(value string) { r.must(clusters[1].Configure(t.Context(), map[string]string{"ssl": value})) }
	for _, c := range []struct {
		name, at  string
		cut, mend func()
		says      string // "" is none: the same command goes on
	}{
		{"F21 the certificate is another's", "load.claimed", func() { other.certify(clusters[1]) }, func() { good.certify(clusters[1]) }, "certificate signed by unknown authority"},
		{
			"F21 the role gets another encoding", "load.marked",
			func() {
				for _, c := range clusters {
					r.must(c.Exec(t.Context(), "postgres", "ALTER ROLE "+role+" SET client_encoding = 'LATIN1'"))
				}
			},
			func() {}, "",
		},
		{"F21 TLS is turned off", "pass.staged", func() { ssl("off") }, func() { ssl("on") }, "its ssl is off; turn it on there"},
		{"F21 the certificate is another's in the freeze", "freeze.held", func() { other.certify(clusters[1]) }, func() { good.certify(clusters[1]) }, "certificate signed by unknown authority"},
	} {
		args := cond(c.says == "", untilCopy, applyArgs)
		p := r.start(c.at+"@1:sleep=1s", args...)
		if !p.passed(c.at, 1) {
			t.Fatalf("%s: the runner did not pass %s", c.name, c.at)
		}
		c.cut()
		out()
		o := p.end()
		r.acceptable(o)
		if c.says == "" {
			r.finally(args...)
			continue
		}
		if o.code == 0 {
			t.Fatalf("%s: done without a way in", c.name)
		}
		if o = r.run("", applyArgs...); o.code != 1 || !strings.Contains(strings.Join(strings.Fields(o.text), " "), c.says) {
			t.Fatalf("%s: %s, want 1 and %q\n%s", c.name, o, c.says, o.text)
		}
		r.writing(0)
		c.mend()
	}
	r.finally(applyArgs...)
	conn, err := pgx.Connect(t.Context(), r.via[1])
	r.must(err)
	defer func() { _ = conn.Close(t.Context()) }()
	var encrypted bool
	r.must(conn.QueryRow(t.Context(), "SELECT bool_or(ssl) FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted))
	if !encrypted {
		t.Error("the way in had no TLS: this proves nothing")
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}
