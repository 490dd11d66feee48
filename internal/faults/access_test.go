package faults_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestF20Poolers puts PgBouncer between the program and either side. A pool in session mode carries
// a whole migration; in the other modes plan refuses, and says why, before anything is touched.
func TestF20Poolers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	before := [2]string{r.dump(r.source), r.dump(r.target)}
	for _, mode := range []string{"transaction", "statement", "session"} {
		var bouncers [2]*testpg.Bouncer
		for side, direct := range []string{r.source, r.target} {
			config, err := pgx.ParseConfig(direct)
			r.must(err)
			bouncers[side] = testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{config.Database: direct}, PoolMode: mode, PoolSize: 60})
			r.via[side] = bouncers[side].URL(config.Database, config.User)
			if mode == "session" {
				continue
			}
			for _, args := range [][]string{{"plan"}, applyArgs} {
				o := r.run("", args...)
				text := strings.Join(strings.Fields(o.text), " ")
				if o.code != 13 || !strings.Contains(text, "pool") || !strings.Contains(text, cond(side == 0, "source", "target")) || !strings.Contains(text, "session mode") {
					t.Fatalf("%s through a pool in %s mode on side %d: %s, want a refusal with the reason\n%s", args[0], mode, side, o, o.text)
				}
				if args[0] == "plan" && !strings.Contains(text, "PRE112 "+cond(side == 0, "source", "target")) {
					t.Fatalf("the plan has no finding with a fix:\n%s", o.text)
				}
			}
			r.via[side] = ""
			for i, direct := range []string{r.source, r.target} {
				if after := r.dump(direct); after != before[i] {
					t.Fatalf("a refused plan changed side %d:\n%s", i, firstDifference(before[i], after))
				}
			}
		}
		if mode != "session" {
			continue
		}
		r.finally(applyArgs...)
		for side, b := range bouncers {
			if !strings.Contains(b.Log(), "login attempt") {
				t.Fatalf("nobody came through the pool on side %d", side)
			}
		}
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// admit writes who may connect: everybody but the program's role, for which rule decides.
func (r *rig) admit(c *testpg.Cluster, rule string) {
	r.t.Helper()
	path := filepath.Join(c.DataDir, "pg_hba.conf")
	text := "host all mover 127.0.0.1/32 " + rule + "\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"
	st, err := os.Stat(path)
	r.must(err)
	r.must(os.WriteFile(path, []byte(text), st.Mode()))
	r.must(c.Exec(r.t.Context(), "postgres", "SELECT pg_reload_conf()"))
}

// TestF21Access changes the program's password, lets it expire, and shuts the program out, in
// mid-run. It stops with the cause, shows no password, and goes on when it is let in again.
func TestF21Access(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor := majors(t)
	target := testpg.StartT(t, testpg.Options{Major: targetMajor, Settings: map[string]string{"password_encryption": "scram-sha-256"}})
	r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, sourceMajor)), testpg.NewDB(t, target))
	r.must(target.Exec(t.Context(), "postgres", "CREATE ROLE mover SUPERUSER LOGIN PASSWORD 'oldsecret'"))
	r.admit(target, "scram-sha-256")
	with := func(password string) {
		u, err := url.Parse(r.target)
		r.must(err)
		u.User = url.UserPassword("mover", password)
		r.via[1] = u.String()
	}
	with("oldsecret")
	const out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mover'"
	for _, c := range []struct {
		name, at string
		cut      func()
		says     []string
		mend     func()
	}{
		{
			"F21 the password is another", "load.claimed",
			func() { r.must(target.Exec(t.Context(), "postgres", "ALTER ROLE mover PASSWORD 'newsecret'", out)) },
			[]string{"password authentication failed", "new password"},
			func() { with("newsecret") },
		},
		{
			"F21 the password has expired", "pass.staged",
			func() {
				r.must(target.Exec(t.Context(), "postgres", "ALTER ROLE mover VALID UNTIL '2001-01-01'", out))
			},
			[]string{"password authentication failed", "new password"},
			func() { r.must(target.Exec(t.Context(), "postgres", "ALTER ROLE mover VALID UNTIL 'infinity'")) },
		},
		{
			"F21 pg_hba.conf rejects", "freeze.held",
			func() {
				r.admit(target, "reject")
				r.must(target.Exec(t.Context(), "postgres", out))
			},
			[]string{"pg_hba.conf"},
			func() { r.admit(target, "scram-sha-256") },
		},
	} {
		p := r.start(c.at+"@1:sleep=1s", applyArgs...)
		if !p.passed(c.at, 1) {
			t.Fatalf("%s: the runner did not pass %s", c.name, c.at)
		}
		c.cut()
		o := p.end()
		if r.acceptable(o); o.code == 0 {
			t.Fatalf("%s: done without a way in", c.name)
		}
		o = r.run("", applyArgs...)
		if o.code != 1 {
			t.Fatalf("%s: %s, want 1\n%s", c.name, o, o.text)
		}
		for _, want := range c.says {
			if !strings.Contains(o.text, want) {
				t.Errorf("%s: the message does not say %q\n%s", c.name, want, o.text)
			}
		}
		r.writing(0)
		c.mend()
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	if text := r.log.String(); strings.Contains(text, "oldsecret") || strings.Contains(text, "newsecret") {
		t.Error("a password was shown")
	}
	r.balance(r.target)
}
