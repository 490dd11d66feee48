package cutover_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// phases are all that take steps of people's, in the order in which a migration that goes there, back, there
// again and to its end meets them.
var phases = []string{"schema", "capture", "copy", "catch_up", "verify", "cutover", "rollback", "finish"}

// everySlot is a runbook that says, into a file, where it is: before and after each phase, and in the switch.
// cutover and back are what the blocks of those names say beside that.
func (r *rig) everySlot(cutover, back string) string {
	step := func(slot, says, more string) string {
		return fmt.Sprintf("  %s {\n    step \"exec\" \"%[1]s\" {\n      command = [\"/bin/sh\", \"-c\", \"echo %[2]s >> $SAYS\"]\n      env     = { SAYS = \"%[3]s/says\" }\n%[4]s    }\n  }\n", slot, says, r.dir, more)
	}
	var text strings.Builder
	for _, phase := range phases {
		fmt.Fprintf(&text, "%s {\n", phase)
		switch phase {
		case "copy":
			text.WriteString("  workers = 2\n")
		case "cutover":
			text.WriteString(cutover + step("switch", "there", "      undo    = [\"/bin/sh\", \"-c\", \"echo back >> $SAYS\"]\n      timeout = \"2s\"\n"))
		case "rollback":
			text.WriteString(back)
		}
		text.WriteString(step("before", "before "+phase, "") + step("after", "after "+phase, "") + "}\n")
	}
	return text.String()
}

// told demands what the steps have said since the last time.
func (r *rig) told(when string, want ...string) {
	r.t.Helper()
	if got := strings.Split(strings.TrimSpace(r.read("says")), "\n"); strings.Join(got, ", ") != strings.Join(want, ", ") {
		r.t.Errorf("%s the steps said:\n%s\nwant:\n%s", when, strings.Join(got, ", "), strings.Join(want, ", "))
	}
	r.must(os.WriteFile(filepath.Join(r.dir, "says"), nil, 0o600))
}

// around is before and after of phases, with something between.
func around(phase string, between ...string) []string {
	return append(append([]string{"before " + phase}, between...), "after "+phase)
}

// TestWholeStory walks one migration there, back, there again and to its end. Steps of people's stand in
// every slot and run in their order, a rollback has a budget of its own, and what is done to the source
// past the gate, between the last look before the flip and the end of its sessions, is named.
func TestWholeStory(t *testing.T) {
	t.Parallel()
	r := newIdleRig(t)
	write := func(back string, attempts int) {
		r.must(os.WriteFile(filepath.Join(r.dir, "move.runbook.hcl"), []byte(strings.Replace(runbookHCL, "copy { workers = 2 }", "", 1)+
			r.everySlot(fmt.Sprintf("  max_write_block = \"60s\"\n  attempts = %d\n  retry_every = \"300ms\"\n  sequence_margin = 100\n", attempts), back)), 0o600))
	}
	write("", 40)
	r.begin(r.source, r.target)
	r.want(0, "apply", "-y")
	var there []string
	for _, phase := range phases[:5] {
		there = append(there, around(phase)...)
	}
	r.told("on the way there", append(there, around("cutover", "there")...)...)
	r.writing(onTarget)
	r.same()

	t.Run("a rollback over its own budget", func(t *testing.T) {
		r.says(r.want(0, "rollback", "--check"), "of 1m0s")
		write("  max_write_block = \"3s\"\n", 2)
		r.says(r.want(0, "rollback", "--check"), "of 3s")
		p := r.start("freeze.switched:sleep=4s", "rollback", "-y")
		if o := p.end(); o.code != 16 || p.passed("freeze.switched") == 0 {
			t.Errorf("over its budget it ended with %d, want 16:\n%s", o.code, o.text)
		}
		r.says(p.said(), "the write block reached its budget of 3s", "Writes go on at the target")
		var undone []string
		for range p.passed("freeze.switched") {
			undone = append(undone, "back", "there") // its switch is the undo, and what takes that back the command
		}
		r.told("over its budget", append([]string{"before rollback"}, undone...)...)
		r.writing(onTarget)
		r.refused(r.source, "25006")
		write("", 40)
		r.want(0, "rollback", "-y")
		r.told("on the way back", around("rollback", "back")...)
		r.writing(onSource)
		r.same()
	})

	t.Run("a second cutover rests on a proof of its own", func(*testing.T) { r.provedAnew() })

	t.Run("what is done past the gate is named", func(t *testing.T) {
		r.pastTheGate()
		r.told("there again", "before cutover", "there", "back", "there", "after cutover")
		r.writing(onTarget)
	})
	r.want(0, "finish", "-y", "--now")
	r.told("at its end", around("finish")...)
	r.balance(r.target)
}

// pastTheGate disables triggers and takes numbers on the source. Before the last look that undoes the attempt,
// and names who is at it; after it the row was written when the target took writes already, so nothing can carry
// it: a person has to know.
func (r *rig) pastTheGate() {
	r.t.Helper()
	decided, looked, after := filepath.Join(r.dir, "decided"), filepath.Join(r.dir, "looked"), filepath.Join(r.dir, "after")
	arrived := func(at string) {
		r.eventually("arrived at "+at, func() bool { _, err := os.Stat(at + ".here"); return err == nil })
	}
	hidden := r.connect(r.source)
	exec := func(sql string) {
		r.t.Helper()
		_, err := hidden.Exec(context.Background(), sql)
		r.must(err)
	}
	const past = "BEGIN; ALTER TABLE app.item DISABLE TRIGGER ALL; UPDATE app.item SET name = 'past the gate' WHERE id = 7; "
	p := r.start("freeze.decided@1:wait="+decided+";freeze.looked@1:wait="+looked+";freeze.after@1:wait="+after, "apply", "-y")
	arrived(decided)
	exec(past)
	r.must(os.WriteFile(decided, nil, 0o600))
	r.eventually("the attempt is undone", func() bool { return strings.Contains(p.said(), "attempt 1: no cutover this time: in the way: ") })
	r.says(p.said(), `on app.item (pid `)
	exec("ROLLBACK")
	arrived(looked)
	exec(past + "SELECT nextval('app.ticket') FROM generate_series(1, 500)")
	r.must(os.WriteFile(looked, nil, 0o600))
	arrived(after)
	exec(`ALTER TABLE app.item ENABLE TRIGGER ALL; ALTER TABLE app.item ENABLE ALWAYS TRIGGER "!pgrunbook_gate"; COMMIT`)
	r.must(os.WriteFile(after, nil, 0o600))
	if o := p.end(); o.code != 0 {
		r.t.Errorf("apply ended with %d\n%s", o.code, o.text)
	}
	r.says(p.said(), "the source's catalog changed during the freeze: freezing app.item: ", "sequences of the source: numbers were taken on the source past the margin of 100", `on the target set ahead: "app"."ticket"`, "code=CUT001")
	if got := r.ask(r.target, "SELECT name FROM app.item WHERE id = 7"); got == "past the gate" {
		r.t.Error("the row that was written past the gate is on the target")
	}
}

// provedAnew changes a row of the target past its gate while the source takes writes again: the comparison from
// before the first cutover knows nothing of it.
func (r *rig) provedAnew() {
	r.t.Helper()
	r.sql(r.target, "BEGIN READ WRITE; SELECT set_config('pgrunbook.mark', mark, false) FROM pgrunbook.side; UPDATE app.item SET name = 'nobody saw this' WHERE id = 8; COMMIT")
	r.says(r.want(12, "apply", "-y"), "app.item differs", "changed (8): name", "Next: pgrunbook verify")
	r.says(r.want(0, "status"), "Next: pgrunbook verify, once what differs is mended")
	r.writing(onSource)
	r.sql(r.source, "UPDATE app.item SET name = name WHERE id = 8")
}
