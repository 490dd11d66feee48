package pg

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestLiteralIsReadBackAsWritten(t *testing.T) {
	s := newServer(t, Config{URL: testpg.Shared(t, testMajor).ConnString()})
	conn := connect(t, s, Use{})
	for _, text := range []string{"", "plain", "it's", `back\slash`, `\'; DROP TABLE x; --`, "ä\n\t%s", `E'\`} {
		if got := show(t, conn, "SELECT "+Literal(text)); got != text {
			t.Errorf("%q came back as %q", text, got)
		}
	}
}

func TestParseIdentifier(t *testing.T) {
	for in, want := range map[string]pgx.Identifier{
		"a.b": {"a", "b"}, "A.B": {"a", "b"}, `"A"."b.c"`: {"A", "b.c"}, `x."q""q"`: {"x", `q"q`}, "one": {"one"},
	} {
		got, err := ParseIdentifier(in)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", in, err, diff)
		}
	}
	for _, in := range []string{"", "a.", ".b", `"a`, `"a"b`, "a..b"} {
		if got, err := ParseIdentifier(in); err == nil {
			t.Errorf("%q was read as %q", in, got)
		}
	}
	if got := Name("My", `q"q`); got != `"My"."q""q"` {
		t.Error(got)
	}
}
