package faults_test

import (
	"regexp"
	"strings"
	"testing"
)

// ourTimes finds every column of ours that holds a time.
const ourTimes = `
DO $$ DECLARE c record; n int; moved int := 0; BEGIN
  FOR c IN SELECT a.attrelid::regclass AS rel, quote_ident(a.attname) AS col FROM pg_attribute a JOIN pg_class r ON r.oid = a.attrelid
            WHERE r.relnamespace = 'pgrunbook'::regnamespace AND r.relkind = 'r' AND a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped LOOP
    EXECUTE format('UPDATE %s SET %s = %s + $1', c.rel, c.col, c.col) USING interval 'BY';
    GET DIAGNOSTICS n = ROW_COUNT;
    moved := moved + n;
  END LOOP;
  IF moved = 0 THEN RAISE EXCEPTION 'no time was moved'; END IF;
END $$`

// TestF08ClocksThatJump moves every time that we keep, on one side into the past and on the other
// into the future, between any two runs: as clocks that jump or differ would. Nothing that decides
// about rows may rest on them.
func TestF08ClocksThatJump(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	jump := func(source, target string) {
		t.Helper()
		r.sql(r.source, strings.ReplaceAll(ourTimes, "BY", source))
		r.sql(r.target, strings.ReplaceAll(ourTimes, "BY", target))
	}
	for i, until := range []string{"capture", "copy", "catch_up", "verify", "arm"} {
		if !r.killed("journal.begun@1", "apply", "--auto-approve", "--until", until) {
			t.Fatalf("the runner did not die on its way to %s", until)
		}
		if i > 0 {
			jump([]string{"1 year", "-1 year"}[i%2], []string{"-2 years", "2 years"}[i%2])
		}
		r.finally("apply", "--auto-approve", "--until", until)
		jump([]string{"-3 days", "3 days"}[i%2], []string{"5 hours", "-5 hours"}[i%2])
	}
	if !r.killed("freeze.passed", applyArgs...) {
		t.Fatal("the runner did not die in the freeze")
	}
	jump("-1 day", "1 day")

	// And while the hold is there, which counts its own time.
	r.edit(`max_write_block = "5s"`, `max_write_block = "60s"`)
	p := r.start("freeze.held@1:sleep=5s", applyArgs...)
	if !p.passed("freeze.held", 1) {
		t.Fatal("the runner did not come to its hold")
	}
	jump("1 year", "-1 year")
	if _, count := p.hits(); count["freeze.passed"] > 0 {
		t.Fatal("the clocks did not jump in the hold")
	}
	if o := p.end(); o.code != 0 || strings.Contains(o.text, "attempt 2") {
		t.Errorf("with clocks that jump in the hold: %s\n%s", o, o.text)
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF06LocalDisk: what a runner keeps on its own disk is a dump for the time of the schema step. A
// disk that takes none is named, and the run goes on elsewhere.
func TestF06LocalDisk(t *testing.T) {
	r := newRig(t)
	t.Setenv("TMPDIR", "/proc") // takes no directory, from root either
	o := r.run("", applyArgs...)
	if o.code != 1 || !regexp.MustCompile(`(?s)making a directory.*/proc`).MatchString(o.text) {
		t.Errorf("without a place for files: %s, want 1 and the place\n%s", o, o.text)
	}
	r.writing(0)
	t.Setenv("TMPDIR", r.dir)
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}
