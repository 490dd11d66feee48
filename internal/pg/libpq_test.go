package pg

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConnectionWords(t *testing.T) {
	cases := []struct {
		dsn  string
		want map[string]string
	}{
		{"postgresql://u:p@h:1/d?sslmode=verify-full&sslrootcert=%2Fa%20b", map[string]string{"host": "h", "port": "1", "sslmode": "verify-full", "sslrootcert": "/a b"}},
		{"postgres://u:p%40@[::1]:5,b/d", map[string]string{"host": "::1,b", "port": "5,"}},
		{"postgresql:///d?host=/var/run", map[string]string{"host": "/var/run"}},
		{"postgresql://%2Ftmp%2Fx/d", map[string]string{"host": "/tmp/x"}},
		{`host=h port = 1 password='a\'b c' sslmode=require`, map[string]string{"host": "h", "port": "1", "password": "a'b c", "sslmode": "require"}},
		{`host='' user=a\ b`, map[string]string{"host": "", "user": "a b"}},
		{"", map[string]string{}},
	}
	for _, c := range cases {
		if diff := cmp.Diff(c.want, connectionWords(c.dsn)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.dsn, diff)
		}
	}
}

func TestLibpqEnv(t *testing.T) {
	t.Setenv("SECRET_OF_OTHERS", "x")
	s, err := New(Config{Side: "target", URL: "postgresql://u@h/d?sslmode=require", PasswordCommand: []string{"echo", "from command"}, RunID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.LibpqEnv(t.Context(), "dump", map[string]string{"pgrunbook.mark": `a b\c`})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PGPASSWORD=from command", "PGHOST=h", "PGUSER=u", "PGDATABASE=d", "PGSSLMODE=require", `PGOPTIONS=-c pgrunbook.mark=a\ b\\c`} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	if slices.Contains(env, "SECRET_OF_OTHERS=x") {
		t.Error("the caller's environment is passed on")
	}
}
