package pg

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Values have the same text for the programs that we start as for our own sessions, whatever a DBA set:
// else pg_dump writes money as the source's locale has it, and the target reads another number.
func TestProgramsHaveTheFormatsOfOurSessions(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	url := testpg.NewDB(t, c)
	s := newServer(t, Config{URL: url})
	admin := connect(t, s, Use{})
	db := show(t, admin, "SELECT current_database()::text")
	formats := map[string]string{
		"DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard", "TimeZone": "'Asia/Kolkata'", "extra_float_digits": "0", "bytea_output": "escape",
		"array_nulls": "off", "lc_monetary": "'POSIX'", "lc_numeric": "'POSIX'", "lc_time": "'POSIX'", "xmloption": "document", "xmlbinary": "hex",
		"standard_conforming_strings": "off", "quote_all_identifiers": "on", "transform_null_equals": "on",
		"tcp_user_timeout": "60000", "tcp_keepalives_idle": "1", "exit_on_error": "on",
	}
	for name, value := range formats {
		run(t, admin, "ALTER DATABASE "+db+" SET "+name+" = "+value)
	}
	options, err := s.ProgramOptions(testContext(t), map[string]string{"pgrunbook.mark": "a b"})
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.LibpqEnv(testContext(t), "dump", options)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range env {
		if text, ok := strings.CutPrefix(kv, "PGOPTIONS="); ok {
			conf.RuntimeParams["options"] = text
		}
	}
	conn, err := pgx.ConnectConfig(testContext(t), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(t.Context(), conn) })
	for _, p := range pinned {
		if formats[p[0]] == "" {
			continue
		}
		delete(formats, p[0])
		if got := show(t, conn, "SHOW "+p[0]); got != p[1] {
			t.Errorf("%s is %q for programs, %q for sessions", p[0], got, p[1])
		}
	}
	if len(formats) > 0 {
		t.Errorf("no session pins %v", formats)
	}
	if got := show(t, conn, "SHOW pgrunbook.mark"); got != "a b" {
		t.Errorf("the mark is %q", got)
	}
}
