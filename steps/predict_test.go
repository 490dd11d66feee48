package steps

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const ms = time.Millisecond

// marksOf writes the marks of freezes in short: "rehearse hold 10ms, rehearse sequences 200ms".
func marksOf(t *testing.T, text string) (list []engine.Event) {
	t.Helper()
	for one := range strings.SplitSeq(text, ", ") {
		f := strings.Fields(one)
		if len(f) < 3 {
			continue
		}
		took, err := time.ParseDuration(f[2])
		if err != nil {
			t.Fatal(err)
		}
		e := engine.Event{Kind: engine.EventFreeze, Step: engine.StepID(f[0]), Mark: f[1], Elapsed: took}
		if len(f) > 3 {
			if e.Rate, err = strconv.ParseFloat(f[3], 64); err != nil {
				t.Fatal(err)
			}
		}
		list = append(list, e)
	}
	return list
}

// TestPredict: what has to be done and what was measured give the write block, its parts add up to it and
// say what they are of, and what only an undone attempt has shown keeps no other from being made.
func TestPredict(t *testing.T) {
	work := costs{tables: 4, sequences: 2}
	reload := costs{reloads: 2, bytes: 40 << 20}
	const rehearsed = "rehearse hold 12ms, rehearse sequences 850ms, rehearse undo 892ms"
	for _, c := range []struct {
		name   string
		costs  costs
		pass   time.Duration
		marks  string
		want   time.Duration
		counts time.Duration // 0: all but the drain and the switch steps
		says   string
	}{
		{"nothing was measured", work, 0, "", 62 * ms, 0, "40ms to hold and prove + 1ms for 4 tables + 1ms for 2 sequences + 20ms to flip"},
		{"a part of a millisecond counts whole", costs{tables: 11}, 1100 * time.Microsecond, "", 64 * ms, 0, "2ms for 11 tables + 2ms for the last pass"},
		{"tables are reloaded at the assumed rate", reload, 0, "", 2070 * ms, 0, "2.01s to reload 2 tables inside the freeze, 40 MiB at 20 MiB/s"},
		{"sizes that nobody could ask for", costs{reloads: 1, bytes: 20 << 20, planned: true}, 0, "", 1065 * ms, 0, "1.005s to reload 1 table inside the freeze, 20 MiB when planned, at 20 MiB/s"},
		{"servers that are far away", costs{from: 80 * ms, to: 40 * ms}, 1480 * ms, "", 5540 * ms, 0, "1.48s for the last pass + 1.12s for 14 round trips of 80ms to prove and carry + 240ms for 6 round trips of 40ms to prove and carry + 20ms to flip + 2.08s for 26 round trips of 80ms to flip + 560ms for 14 round trips of 40ms to flip"},
		{"a runner beside the source", costs{from: 900 * time.Microsecond, to: 40 * ms}, 0, "", 860 * ms, 0, "240ms for 6 round trips of 40ms to prove and carry + 20ms to flip + 560ms for 14 round trips of 40ms to flip"},
		{"servers that are near", costs{from: 900 * time.Microsecond, to: 900 * time.Microsecond}, 0, "", 60 * ms, 0, "40ms to hold and prove + 20ms to flip"},
		{"a pass", work, 19 * ms, "", 81 * ms, 0, "19ms for the last pass"},
		{"a rehearsal that took longer than its parts", work, 19 * ms, rehearsed, 912 * ms, 900 * ms, "819ms more, since the latest rehearsal took 880ms after its drain + 20ms to flip + 12ms for the last drain"},
		{"a rehearsal that took less", reload, 0, rehearsed, 2082 * ms, 0, "+ 20ms to flip + 12ms for the last drain"},
		{"switch steps are in no rehearsal", costs{limits: 4 * time.Second}, 0, rehearsed, 4912 * ms, 900 * ms, "4s for the switch steps at their full timeouts"},
		{"the latest rehearsal counts", work, 0, rehearsed + ", rehearse hold 10ms, rehearse sequences 90ms, rehearse undo 110ms", 130 * ms, 120 * ms, "58ms more, since the latest rehearsal took 100ms after its drain"},
		{"a drain that was given up", work, 0, rehearsed + ", freeze busy 250ms", 1150 * ms, 900 * ms, "838ms more, since the latest rehearsal"},
		{"an attempt that the switch steps took over its budget", costs{limits: time.Second}, 0, "freeze hold 10ms, freeze sequences 310ms, freeze switch 1500ms, freeze undo 2010ms, freeze undo 0s", 1330 * ms, 60 * ms, "260ms more, since the latest attempt took 300ms after its drain"},
		{"an attempt that came to no end", work, 0, rehearsed + ", freeze hold 100ms, freeze proof 120ms, freeze undo 2100ms", 2120 * ms, 900 * ms, "1.958s more, since a freeze was given up 2s after its drain + 20ms to flip + 100ms for the last drain"},
		{"one that was stopped early", work, 0, rehearsed + ", freeze hold 5ms, freeze undo 6ms", 905 * ms, 900 * ms, "since the latest rehearsal took 880ms"},
		{"the next one came to its end", work, 0, "freeze hold 1ms, freeze undo 2001ms, freeze hold 1ms, freeze sequences 31ms, freeze undo 40ms", 63 * ms, 0, "1ms for the last drain"},
		{"a rehearsal that came to no end", work, 0, "rehearse hold 1ms, rehearse undo 2001ms", 2021 * ms, 62 * ms, "since a freeze was given up 2s after its drain"},
		{"a process that died in its freeze", work, 0, rehearsed + ", freeze hold 7ms, freeze hold 9ms", 909 * ms, 900 * ms, "9ms for the last drain"},
		{"only the end of a freeze is known", work, 0, "freeze sequences 700ms, freeze undo 2000ms", 62 * ms, 0, ""},
		{"what came before a flip", work, 0, rehearsed + ", freeze hold 7ms, freeze sequences 90ms, freeze flip 120ms", 62 * ms, 0, ""},
		{"a rehearsal's slow reload", reload, 0, "rehearse reload 1s 10485760", 4070 * ms, 0, "4.01s to reload 2 tables inside the freeze, 40 MiB at 10 MiB/s"},
		{"an attempt's slow reload", reload, 0, "freeze reload 1s 10485760", 4070 * ms, 2070 * ms, "40 MiB at 10 MiB/s"},
		{"an attempt's fast reload", reload, 0, "rehearse reload 1s 10485760, freeze reload 1s 83886080", 570 * ms, 0, "510ms to reload 2 tables inside the freeze, 40 MiB at 80 MiB/s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := measured{Pass: c.pass}
			m.see(marksOf(t, c.marks))
			p := c.costs.predict(m)
			if c.counts == 0 {
				c.counts = c.want - p.Drain - p.Switch
			}
			if p.WriteBlock != c.want || p.Counts() != c.counts || !strings.Contains(p.Why, c.says) {
				t.Errorf("predicted %s, of which %s counts, want %s and %s and %q:\n%s", p.WriteBlock, p.Counts(), c.want, c.counts, c.says, p.Why)
			}
			if sum := sumOf(p.Parts); sum != p.WriteBlock || sum != sumOfText(t, p.Why) {
				t.Errorf("the parts add up to %s, in words to %s: %s", sum, sumOfText(t, p.Why), p.Why)
			}
		})
	}
}

// TestPredictPoolers: what the poolers took in the latest attempt of either direction is part of the next prediction,
// also after a flip; it keeps no freeze from being tried.
func TestPredictPoolers(t *testing.T) {
	marks := marksOf(t, "freeze pause 40ms, freeze hold 1ms, freeze repoint 900ms, freeze flip 1s, freeze resume 3ms, rollback pause 5ms, rollback hold 1ms, rollback repoint 7300us, rollback flip 30ms")
	m := measured{}
	m.poolersShown.see(marks)
	m.see(marks)
	p := costs{limits: time.Second}.predict(m)
	const says = "40ms to hold and prove + 20ms to flip + 8ms to repoint the poolers + 1s for the switch steps at their full timeouts; before it the poolers' clients wait for PAUSE, which took 5ms, and after it for RESUME, which took 3ms"
	if p.Why != says || p.WriteBlock != 1068*ms || p.Counts() != 60*ms || sumOf(p.Parts) != p.WriteBlock {
		t.Errorf("predicted %s, of which %s counts: %s\nwant %s", p.WriteBlock, p.Counts(), p.Why, says)
	}
	if l := p.Line(); l.WriteBlock != 1.068 || l.Pause != 0.005 || l.Resume != 0.003 || len(l.Parts) != 4 {
		t.Errorf("in seconds: %+v", l)
	}
}

// TestOverPredicted: who may not try a freeze is told what counts against it, what does not, and what to type.
func TestOverPredicted(t *testing.T) {
	m := measured{}
	m.see(marksOf(t, "rehearse hold 12ms, rehearse sequences 850ms, rehearse undo 892ms"))
	p := costs{limits: time.Second}.predict(m)
	p.Budget = 800 * ms
	want := "predicted write block of 900ms is over max_write_block 800ms, beside 1.012s that may not come: of the last drain, of the switch and of attempts that were undone: " +
		p.Why + "; pgrunbook rehearse measures it anew"
	if got := overPredicted(p).Error(); !p.Over() || got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p = costs{tables: 9000}.predict(measured{})
	p.Budget = 800 * ms
	if got := overPredicted(p).Error(); !p.Over() || got != "predicted write block of 960ms is over max_write_block 800ms: "+p.Why {
		t.Errorf("got %s", got)
	}
}

// TestOverPredictedByTrips: round trips count, and whoever may not try a freeze for them is told to go nearer.
func TestOverPredictedByTrips(t *testing.T) {
	p := costs{from: 80 * ms, to: 80 * ms}.predict(measured{})
	p.Budget = time.Second
	if got := overPredicted(p).Error(); !p.Over() || !strings.Contains(got, "shorter where pgrunbook runs nearer to the servers") {
		t.Errorf("got %s", got)
	}
}

// sumOfText adds up what an explanation says.
func sumOfText(t *testing.T, why string) (sum time.Duration) {
	t.Helper()
	for part := range strings.SplitSeq(why, " + ") {
		number, _, _ := strings.Cut(part, " ")
		d, err := time.ParseDuration(number)
		if err != nil {
			t.Fatal(err)
		}
		sum += d
	}
	return sum
}

// slowly makes what comes after a freeze's mark wait, once.
func (r *rig) slowly(mark string, wait time.Duration) {
	done := false
	r.onEvent = func(e engine.Event) {
		if e.Kind == engine.EventFreeze && e.Mark == mark && !done {
			done = true
			time.Sleep(wait)
		}
	}
}

// nextCommand ends the run's session and opens it anew, as the next command does: what was measured is in the
// journal then.
func (r *rig) nextCommand() {
	r.t.Helper()
	r.env.Journal.Close(context.Background())
	r.env.Sink = engine.SinkFunc(r.emit)
	r.open()
	r.env.report(engine.SinkFunc(r.emit))
}

// predictedNow is what status says, and holds it to what an approval says.
func (r *rig) predictedNow() engine.Prediction {
	r.t.Helper()
	st, err := ReadStatus(r.t.Context(), r.env.Target, r.env.Source)
	r.must(err)
	if said := r.env.predicted(r.t.Context()); said != st.Predicted.String() {
		r.t.Errorf("an approval says %q, status %q", said, st.Predicted)
	}
	if sumOf(st.Predicted.Parts) != st.Predicted.WriteBlock {
		r.t.Errorf("the parts do not add up: %s", st.Predicted)
	}
	return st.Predicted
}

// TestPredictedByRehearsal: what a rehearsal took is the least that is predicted, by status, an approval
// and the attempt; tables that are reloaded count as they are now; an attempt that went over its budget
// keeps no other away; and of a freeze that is over nothing is said.
func TestPredictedByRehearsal(t *testing.T) {
	r := newRig(t, "cutover {\n max_write_block = \"1500ms\"\n attempts = 2\n retry_every = \"10ms\"\n}")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.nextCommand()
	before := r.predictedNow()
	if before.WriteBlock <= 0 || before.Of() != "cutover" || before.Budget != 1500*ms {
		t.Errorf("before the rehearsal: %+v", before)
	}
	r.slowly("pass", 400*ms)
	done, err := Rehearse(t.Context(), r.env, engine.SinkFunc(r.emit))
	r.must(err)
	r.nextCommand()
	after := r.predictedNow()
	if done.Predicted.WriteBlock != after.WriteBlock {
		t.Errorf("the rehearsal itself says %s, status %s", done.Predicted, after)
	}
	if done.Blocked < 400*ms || after.WriteBlock < done.Blocked || !strings.Contains(after.Why, "more, since the latest rehearsal took ") || after.Over() {
		t.Errorf("a rehearsal of %s, predicted: %s", done.Blocked, after)
	}

	log := func(p engine.Prediction) string {
		i := slices.IndexFunc(p.Parts, func(part engine.Part) bool { return strings.Contains(part.What, "to reload 1 table") })
		if i < 0 {
			t.Fatalf("no word of the table that is reloaded: %s", p)
		}
		return p.Parts[i].What
	}
	r.exec(r.source, "INSERT INTO shop.log SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
	if grown := r.predictedNow(); log(grown) == log(after) {
		t.Errorf("the table has grown, and before and after it is %s", log(grown))
	}
	locked := r.app(r.source)
	locked.run("BEGIN; LOCK TABLE shop.log")
	if p := r.predictedNow(); !strings.Contains(log(p), "when planned") {
		t.Errorf("a table that nobody may look at is %s", log(p))
	}
	locked.run("ROLLBACK")

	r.slowly("proof", 1600*ms)
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.onEvent = nil
	for _, want := range []string{"freeze attempt 1 of 2, predicted write block 0.", "attempt 1: no cutover this time: the write block reached its budget of 1.5s", "freeze attempt 2 of 2, predicted write block 1.", "more, since a freeze was given up "} {
		if !r.heard(want) {
			t.Errorf("nothing was said of %q", want)
		}
	}
	r.nextCommand()
	st, err := ReadStatus(t.Context(), r.env.Target, r.env.Source) // the plan has no step reverse: there is no way back
	if err != nil || st.Writes != engine.Target || st.Predicted.WriteBlock != 0 {
		t.Errorf("after the flip: %v, the %s takes writes, %s", err, st.Writes, st.Predicted)
	}
	owner, err := r.env.Journal.Owner(t.Context())
	r.must(err)
	if back, err := predictNow(t.Context(), r.env, owner); err != nil || back.Of() != "rollback" || back.WriteBlock <= 0 || strings.Contains(back.Why, "more, since") {
		t.Errorf("the way back: %v, %s of %s", err, back, back.Of())
	}
}

// TestMeasuredSinceTheFlip: what was measured on the other way, or before the latest flip, does not count.
func TestMeasuredSinceTheFlip(t *testing.T) {
	r := newRig(t, "")
	flip := time.Now()
	for _, e := range []engine.Event{
		{Step: "rollback", Mark: freeze.MarkHold, Elapsed: ms, At: flip.Add(-time.Hour)},
		{Step: "rollback", Mark: freeze.MarkCarried, Elapsed: 100 * ms, At: flip.Add(-time.Hour)},
		{Step: "freeze", Mark: freeze.MarkHold, Elapsed: 2 * ms, At: flip.Add(time.Second)},
		{Step: "freeze", Mark: freeze.MarkCarried, Elapsed: 202 * ms, At: flip.Add(time.Second)},
		{Step: "rollback", Mark: freeze.MarkHold, Elapsed: 3 * ms, At: flip.Add(time.Second)},
		{Step: "rollback", Mark: freeze.MarkUndo, Elapsed: 303 * ms, At: flip.Add(time.Second)},
	} {
		e.Kind = engine.EventFreeze
		r.must(r.env.Journal.Record(t.Context(), e))
	}
	for _, c := range []struct {
		name  string
		owner journal.Ownership
		want  measured
	}{
		{"before any flip", journal.Ownership{Side: engine.Source, Since: flip.Add(time.Hour)}, measured{Drain: 2 * ms, Work: 200 * ms}},
		{"after the way back", journal.Ownership{Side: engine.Source, Since: flip.Add(time.Hour), Flip: &journal.Flip{From: engine.Target}}, measured{}},
		{"after the cutover", journal.Ownership{Side: engine.Target, Since: flip, Flip: &journal.Flip{From: engine.Source}}, measured{Drain: 3 * ms, GivenUp: 300 * ms}},
	} {
		if got, err := measureNow(t.Context(), r.env.Journal, c.owner); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	r.env.Scope = &scope.Scope{}
	if p, err := predictNow(t.Context(), r.env, journal.Ownership{Side: journal.Unclear}); err != nil || p.WriteBlock != 0 {
		t.Errorf("while a flip is open: %v, %s", err, p)
	}
}
