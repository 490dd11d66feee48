package cutover_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
)

// afterFlip is what status --json says of both sides.
type afterFlip struct {
	Writes string
	After  struct {
		Old       string   `json:"old_side"`
		Refused   *int     `json:"refused_writes"`
		ReadOnly  bool     `json:"read_only"`
		Connected []string `json:"still_connected"`
		Back      struct {
			Possible bool
			Rows     int `json:"pending_rows"`
		} `json:"rollback"`
	} `json:"after_flip"`
}

// TestR18OldSide: after the flip the old side refuses with the runbook's own SQLSTATE and message, also
// a session like any other and one that swallows every other error; status counts who was refused and
// shows who is still connected there.
func TestR18OldSide(t *testing.T) {
	t.Parallel()
	r := newRig(t, strings.Replace(plain, "cutover {\n", `cutover {
  closed_error   = "57014"
  closed_message = "the shop has moved: reconnect"
  end_sessions   = false
`, 1))
	r.want(0, "apply", "-y", "--until", "arm")
	if text := r.want(0, "status"); strings.Contains(text, "old side") || strings.Contains(text, "way back") {
		t.Errorf("before the flip there is no old side:\n%s", text)
	}
	early := r.refused(r.target, "57014") // nobody writes there before, and it has not moved from there
	r.says(early, "this database is being migrated and is not open for writes yet", "Writes go to "+address(r.source))
	r.want(0, "apply", "-y")
	r.stop() // its clients would be refused here and there

	before := r.afterFlip()
	if before.Writes != "target" || before.After.Old != "source" || before.After.Refused == nil || before.After.ReadOnly || len(before.After.Connected) != 0 || !before.After.Back.Possible {
		t.Errorf("status: %+v", before)
	}
	for _, words := range []string{r.refused(r.source, "57014"), r.refused(r.source, "57014"), r.refused(r.source, "57014")} {
		r.says(words, "the shop has moved: reconnect", "Writes go to "+address(r.target))
	}
	for _, sql := range []string{plainWrite, swallowing} {
		if err := r.try(r.source, sql); sqlState(err) != "57014" || !strings.Contains(err.Error(), "the shop has moved: reconnect") {
			t.Errorf("%s ended with %v", sql, err)
		}
	}
	forgotten := r.connect(r.source)
	_, err := forgotten.Exec(context.Background(), "SET application_name = 'nightly report'")
	r.must(err)
	r.sql(r.target, "INSERT INTO app.bag VALUES (1, 'on its way back'); UPDATE app.item SET net = 7 WHERE id < 11")

	after := r.afterFlip()
	if after.After.Refused == nil || *after.After.Refused != *before.After.Refused+5 || after.After.Back.Rows < 11 {
		t.Errorf("5 writes were refused and 11 rows changed; status: %+v, before %+v", after.After, before.After)
	}
	r.says(r.want(0, "status"), "The target takes writes", "writes refused by the gate", `still connected to the source: 1 session of user postgres, application "nightly report"`, "way back possible, after")
	_, err = forgotten.Exec(context.Background(), "SELECT count(*) FROM app.item") // it may read
	r.must(err)
	r.balance(r.target)
}

// plainWrite is an application's; swallowing is one's that catches whatever can be caught.
const (
	plainWrite = "INSERT INTO app.bag VALUES (1, 'by mistake')"
	swallowing = "DO $$ BEGIN " + plainWrite + "; EXCEPTION WHEN OTHERS THEN NULL; END $$"
)

// afterFlip is what status says of the flip.
func (r *rig) afterFlip() (s afterFlip) {
	r.t.Helper()
	r.must(json.Unmarshal([]byte(r.stdout("status", "--json")), &s))
	return s
}

// address is a server's as the gate says it.
func address(url string) string {
	_, rest, _ := strings.Cut(url, "@")
	rest, _, _ = strings.Cut(rest, "?")
	return rest
}

// TestR27OldSideByDefault: sessions on the old side are ended and it is read-only by default, so that
// the server refuses there before the gate does, which status says; a rollback takes that back.
func TestR27OldSideByDefault(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	lasting := strings.Replace(settings, ", relfilenode", "", 1) // a rollback sets the sequences
	set := r.ask(r.source, lasting)
	r.want(0, "apply", "-y", "--until", "arm")
	idle := r.connect(r.source)
	r.must(idle.Ping(context.Background()))
	r.says(r.want(0, "apply", "-y"), "sessions on the source were ended")
	if idle.Ping(context.Background()) == nil {
		t.Error("an idle session on the source outlived the flip")
	}
	if got := r.ask(r.source, "SHOW default_transaction_read_only"); got != "on" {
		t.Errorf("default_transaction_read_only on the source is %s", got)
	}
	if got := r.ask(r.target, "SHOW default_transaction_read_only"); got != "off" {
		t.Errorf("default_transaction_read_only on the target is %s", got)
	}
	before := r.afterFlip().After
	if err := r.try(r.source, plainWrite); sqlState(err) != "25006" || !strings.Contains(err.Error(), "cannot execute INSERT in a read-only transaction") {
		t.Errorf("a write on the source ended with %v", err)
	}
	if now := r.afterFlip().After; before.Refused == nil || now.Refused == nil || *now.Refused != *before.Refused || !now.ReadOnly {
		t.Errorf("what the server refused is no count of the gate: %+v, before %+v", now, before)
	}
	r.says(r.want(0, "status"), "writes refused by the gate; new sessions are read-only, and what the server refuses for that is not counted")
	r.want(0, "rollback", "-y")
	r.says(r.want(0, "status"), "old side the target:", "rollback not possible since 20", "writes are on the source already", "pgrunbook apply cuts over again", "pending freeze: to be made again, since writes went back to the source", "Next: pgrunbook apply, which cuts over again; or pgrunbook abort, to give the run up")
	r.writing(onSource)
	if got := r.ask(r.target, "SHOW default_transaction_read_only"); got != "on" {
		t.Errorf("after the rollback default_transaction_read_only on the target is %s", got)
	}
	r.want(0, "abort", "-y", "--drop-target")
	r.says(r.want(0, "status"), "rollback not possible since 20", "the run was given up: writes are on the source")
	if now := r.ask(r.source, lasting); now != set {
		t.Errorf("after cutover, rollback and abort the source's settings differ:\n%s", firstDifference(set, now))
	}
	r.writing(onSource)
	r.balance(r.source)
}
