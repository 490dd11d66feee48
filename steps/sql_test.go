package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestSQLOnTheTargetTakesEffectOnce(t *testing.T) {
	server, url := database(t, "target")
	query(t, url, "CREATE TABLE public.hits (n int)")
	s := oneStep(t, &Env{Target: server}, Before, t.TempDir(),
		"step \"sql\" \"x\" {\n on = \"target\"\n statement = \"INSERT INTO hits VALUES (1); SELECT count(*) FROM hits\"\n expect = \"1\"\n undo = \"DELETE FROM hits\"\n }", nil)
	cp := &paper{url: url}
	for range 2 {
		if err := apply(t, s, cp); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(t, url, "SELECT count(*) FROM public.hits"); got != "1" {
		t.Errorf("%s rows, want 1", got)
	}
	if err := s.(engine.Undoer).Undo(t.Context(), cp); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, s, cp); err != nil {
		t.Fatal(err)
	}
	if got := query(t, url, "SELECT count(*) FROM public.hits"); got != "1" {
		t.Errorf("after undo and apply: %s rows, want 1", got)
	}
}

func TestSQLRollsBackWhatIsNotExpected(t *testing.T) {
	server, url := database(t, "source")
	s := oneStep(t, &Env{Source: server}, Before, t.TempDir(),
		"step \"sql\" \"x\" {\n on = \"source\"\n statement = \"CREATE TABLE public.made (); SELECT 2\"\n expect = \"1\"\n }", nil)
	err := apply(t, s, &paper{})
	if err == nil || !strings.Contains(err.Error(), `"2"`) {
		t.Errorf("error is %v", err)
	}
	if got := query(t, url, "SELECT to_regclass('public.made') IS NULL"); got != "t" {
		t.Error("the statement was not rolled back")
	}
}

func TestSQLOutsideATransaction(t *testing.T) {
	server, _ := database(t, "target")
	env := &Env{Target: server}
	inside := oneStep(t, env, Before, t.TempDir(), "step \"sql\" \"x\" {\n on = \"target\"\n statement = \"VACUUM public.paper\"\n }", nil)
	err := apply(t, inside, &paper{})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || !strings.Contains(engine.HintOf(err), "transaction = false") {
		t.Errorf("error is %v, hint %q", err, engine.HintOf(err))
	}
	outside := oneStep(t, env, Before, t.TempDir(), "step \"sql\" \"x\" {\n on = \"target\"\n statement = \"VACUUM public.paper\"\n transaction = false\n }", nil)
	if err := apply(t, outside, &paper{}); err != nil {
		t.Error(err)
	}
}

func TestSQLTimeoutAndFile(t *testing.T) {
	server, url := database(t, "target")
	dir := t.TempDir()
	writeScript(t, dir, "x.sql", "")
	s := oneStep(t, &Env{Target: server}, Before, dir, "step \"sql\" \"x\" {\n on = \"target\"\n statement = \"SELECT pg_sleep(60)\"\n timeout = \"200ms\"\n }", nil)
	if err := apply(t, s, &paper{url: url}); err == nil || !strings.Contains(err.Error(), "timeout of 200ms") {
		t.Errorf("error is %v", err)
	}
	env := &Env{Target: server}
	writeFile(t, dir, "made.sql", "CREATE TABLE public.made (n int);\nINSERT INTO public.made VALUES (7);\n")
	s = oneStep(t, env, Before, dir, "step \"sql\" \"x\" {\n on = \"target\"\n file = \"made.sql\"\n }", nil)
	if err := apply(t, s, &paper{url: url}); err != nil {
		t.Fatal(err)
	}
	if got := query(t, url, "SELECT n FROM public.made"); got != "7" {
		t.Errorf("n is %s", got)
	}
	if _, ok := env.Runbook.Files["made.sql"]; !ok {
		t.Error("the file is not pinned")
	}
}

func TestSQLScriptMayNotEndItsTransaction(t *testing.T) {
	server, url := database(t, "target")
	s := oneStep(t, &Env{Target: server}, Before, t.TempDir(), "step \"sql\" \"x\" {\n on = \"target\"\n statement = \"SELECT 1; COMMIT\"\n }", nil)
	if err := apply(t, s, &paper{url: url}); err == nil || !strings.Contains(err.Error(), "leave COMMIT") {
		t.Errorf("error is %v", err)
	}
}
