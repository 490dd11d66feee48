package pg

import (
	"strings"
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

// What is displayed names the object in SQL, and is written as a person would.
func TestDisplayIsReadBackAsSQL(t *testing.T) {
	conn := connect(t, newServer(t, Config{URL: testpg.NewDB(t, testpg.Shared(t, testMajor))}), Use{})
	for want, name := range map[string][2]string{
		"app.orders": {"app", "orders"}, `app."Order Items"`: {"app", "Order Items"}, `"App"."q""q"`: {"App", `q"q`},
		`app."1st"`: {"app", "1st"}, `"order"."a.b"`: {"order", "a.b"}, "app.order": {"app", "order"},
	} {
		if got := Display(name[0], name[1]); got != want {
			t.Errorf("%s is displayed for %s", got, want)
		}
		run(t, conn, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{name[0]}.Sanitize(), "CREATE TABLE "+want+" ()")
		if got := show(t, conn, "SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = $1 AND relname = $2", name[0], name[1]); got != "1" {
			t.Errorf("%s is another table", want)
		}
	}
	words := show(t, conn, "SELECT string_agg(word, ' ') FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
	for _, word := range strings.Fields(words) {
		if Display(word, "x") != `"`+word+`".x` {
			t.Errorf("schema %s is displayed without quotes", word)
		}
	}
}
