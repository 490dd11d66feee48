package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What the parts of a freeze cost, from measurements on 2 cores with 2,000 tables and as many
// sequences: rounded up, since a promise that is kept is worth more than a small number.
const (
	costHold     = 40 * time.Millisecond // hold, proof, drain and last exact pass of a quiet database
	costFlip     = 20 * time.Millisecond // both COMMITs and what stands around them, which a rehearsal leaves out
	costTable    = 100 * time.Microsecond
	costSequence = 200 * time.Microsecond
	minReload    = 5 * time.Millisecond
)

// Round trips to the servers, one after the other, beside those of the last pass. All of the above was measured where
// they take next to nothing.
const (
	workFrom, workTo = 14, 6
	flipFrom, flipTo = 26, 14
	shortTrip        = time.Millisecond // is in the costs above

	roundTrips = "round trips"
)

// writeBlock is the budget of a freeze that starts from a side.
func writeBlock(rb *runbook.Runbook, from engine.Side) time.Duration {
	return rb.WriteBlock(from == engine.Target)
}

// costs is what a freeze has to do.
type costs struct {
	tables    int
	sequences int
	reloads   int           // tables that are reloaded inside it
	bytes     int64         // of these
	planned   bool          // as they were when the plan was made
	limits    time.Duration // of the switch steps together
	from, to  time.Duration // a round trip to the side that is frozen, and to the other; 0: nobody has asked
}

func costsOf(s *scope.Scope) costs {
	c := costs{tables: len(s.Tables), sequences: len(s.Sequences)}
	for _, t := range s.Tables {
		if t.Data == scope.AtFreeze {
			c.reloads++
			c.bytes += t.Bytes
		}
	}
	return c
}

// predict gives the write block with its parts, each in whole milliseconds: they add up.
func (c costs) predict(m measured) engine.Prediction {
	p := engine.Prediction{Measured: m.Pass > 0 || m.Drain > 0 || m.Work > 0, Switch: c.limits, Drain: whole(m.Drain), Repoint: whole(m.Repoint), Pause: m.Pause, Resume: m.Resume}
	parts, firm := c.work(m, m.reloadRate()), sumOf(c.work(m, m.firmRate()))
	took, what := m.longest()
	if more := whole(took) - sumOf(parts); more > 0 {
		parts = append(parts, engine.Part{Takes: more, What: fmt.Sprintf("more, since %s %s after its drain", what, whole(took))})
	}
	if m.Rehearsed {
		firm = max(firm, whole(m.Work))
	}
	p.Undone = max(0, sumOf(parts)-firm)
	parts = append(parts, engine.Part{Takes: costFlip, What: "to flip"})
	parts = append(parts, c.trips(flipFrom, flipTo, "to flip")...)
	if p.Drain > 0 {
		parts = append(parts, engine.Part{Takes: p.Drain, What: "for the last drain"})
	}
	if p.Repoint > 0 {
		parts = append(parts, engine.Part{Takes: p.Repoint, What: "to repoint the poolers"})
	}
	if p.Switch > 0 {
		parts = append(parts, engine.Part{Takes: p.Switch, What: "for the switch steps at their full timeouts"})
	}
	p.WriteBlock, p.Parts = sumOf(parts), parts
	p.Why = p.Explain() + waitsBesides(p)
	return p
}

// waitsBesides says what the poolers' clients wait for before and after the write block.
func waitsBesides(p engine.Prediction) (text string) {
	if p.Pause > 0 {
		text = fmt.Sprintf("; before it the poolers' clients wait for PAUSE, which took %s", whole(p.Pause))
	}
	if p.Pause > 0 && p.Resume > 0 {
		text += fmt.Sprintf(", and after it for RESUME, which took %s", whole(p.Resume))
	}
	return text
}

// work is what stands between the drain and the switch steps, by what is known of each part alone.
// rate is that of reloads, in bytes a second.
func (c costs) work(m measured, rate float64) []engine.Part {
	parts := []engine.Part{{Takes: costHold, What: "to hold and prove"}}
	add := func(takes time.Duration, what string) {
		if takes > 0 {
			parts = append(parts, engine.Part{Takes: whole(takes), What: what})
		}
	}
	add(time.Duration(c.tables)*costTable, "for "+engine.Plural(c.tables, "table"))
	add(time.Duration(c.sequences)*costSequence, "for "+engine.Plural(c.sequences, "sequence"))
	if c.reloads > 0 {
		size := humanize.IBytes(uint64(max(c.bytes, 0)))
		if c.planned {
			size += " when planned,"
		}
		add(time.Duration(c.reloads)*minReload+time.Duration(float64(c.bytes)/rate*float64(time.Second)),
			fmt.Sprintf("to reload %s inside the freeze, %s at %s/s", engine.Plural(c.reloads, "table"), size, humanize.IBytes(uint64(rate))))
	}
	add(m.Pass, "for the last pass")
	return append(parts, c.trips(workFrom, workTo, "to prove and carry")...)
}

// trips is the part of so many round trips to either side.
func (c costs) trips(from, to int, what string) (parts []engine.Part) {
	for _, t := range []struct {
		n    int
		trip time.Duration
	}{{from, c.from}, {to, c.to}} {
		if t.trip >= shortTrip {
			parts = append(parts, engine.Part{Takes: whole(time.Duration(t.n) * t.trip), What: fmt.Sprintf("for %d %s of %s %s", t.n, roundTrips, whole(t.trip), what)})
		}
	}
	return parts
}

func sumOf(parts []engine.Part) (sum time.Duration) {
	for _, p := range parts {
		sum += p.Takes
	}
	return sum
}

// whole rounds up to whole milliseconds.
func whole(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

// predict estimates the write block of a plan's freeze, in either direction, before anything was measured.
func predict(env *Env, from engine.Side) engine.Prediction {
	c := costsOf(env.Scope)
	c.limits = switchLimits(env)
	return budgeted(env, from, c.predict(measured{}))
}

// budgeted says what a prediction is held to. It may have been tuned since the plan; who has no runbook
// has the plan's.
func budgeted(env *Env, from engine.Side, p engine.Prediction) engine.Prediction {
	p.From = from
	if env.Runbook != nil {
		p.Budget, p.Back = writeBlock(env.Runbook, from), env.Runbook.Rollback.MaxWriteBlock
		return p
	}
	was := env.Plan.Predictions
	p.Budget, p.Back = was.Budget, was.Back
	if p.Back > 0 && from == engine.Target {
		p.Budget = p.Back
	}
	return p
}

// switchLimits adds up the timeouts of the switch steps, by the runbook or, where there is none, by the plan.
func switchLimits(env *Env) (sum time.Duration) {
	if env.Runbook == nil {
		return env.Plan.Predictions.Switch
	}
	repoint, _ := people(env, Place{engine.PhaseCutover, Switch}, env.Runbook.Cutover.Switch)
	for _, s := range switchSteps(env, repoint) {
		sum += s.Timeout
	}
	return sum
}

// sizesNowSQL has the tables by their names, which are the same on both sides.
const sizesNowSQL = `
SELECT coalesce(sum(pg_table_size(c.oid)), 0)::int8
  FROM unnest($1::text[], $2::text[]) AS w (s, t)
  JOIN pg_namespace n ON n.nspname = w.s
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t`

// askSizes asks a side how large the tables are that are reloaded. DDL that holds one of them leaves the
// sizes that are known.
func (c *costs) askSizes(ctx context.Context, conn *pgx.Conn, s *scope.Scope) {
	if c.reloads == 0 {
		return
	}
	var schemas, names []string
	for _, t := range s.Tables {
		if t.Data != scope.AtFreeze {
			continue
		}
		schemas, names = append(schemas, t.Schema), append(names, t.Name.Name)
		for _, m := range t.Members {
			schemas, names = append(schemas, m.Schema), append(names, m.Name.Name)
		}
	}
	var bytes int64
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { // the server bounds it: what is cut off from here costs the session
		if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', '200ms', true), set_config('statement_timeout', '1s', true)"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sizesNowSQL, schemas, names).Scan(&bytes)
	})
	if c.planned = err != nil; !c.planned {
		c.bytes = bytes
	}
}

// predictNow is the prediction for the next freeze of a run, from the side that takes writes: what it has
// to do now, by what was measured since the latest flip. While a flip is open there is none.
func predictNow(ctx context.Context, env *Env, owner journal.Ownership) (engine.Prediction, error) {
	if owner.Side == journal.Unclear {
		return engine.Prediction{}, nil
	}
	m, err := measureNow(ctx, env.Journal, owner)
	if err != nil {
		return engine.Prediction{}, err
	}
	if env.Runbook != nil && len(env.Runbook.Cutover.Poolers) == 0 {
		m.poolersShown = poolersShown{} // they left the runbook since
	}
	c := costsOf(env.Scope)
	c.limits = switchLimits(env)
	c.sizesAt(ctx, env, owner.Side)
	return budgeted(env, owner.Side, c.predict(m)), nil
}

// predictRun is predictNow for the active run of env's target, which is only read.
func predictRun(ctx context.Context, env *Env) (engine.Prediction, error) {
	run, err := journal.OpenReadOnly(ctx, env.Target)
	if err != nil {
		return engine.Prediction{}, err
	}
	defer run.Close(ctx)
	owner, err := run.Owner(ctx)
	if err != nil {
		return engine.Prediction{}, err
	}
	env.Journal = run
	return predictNow(ctx, env, owner)
}

// withoutFreeze keeps of a plan's prediction what later ones are made of, once its freeze is over.
func withoutFreeze(p engine.Prediction) engine.Prediction {
	return engine.Prediction{Switch: p.Switch, Budget: p.Budget, Back: p.Back}
}

// overPredicted is why a freeze is not tried.
func overPredicted(p engine.Prediction) error {
	beside := ""
	if rest := p.WriteBlock - p.Counts(); rest > 0 {
		beside = fmt.Sprintf(", beside %s that may not come: of the last drain, of the switch and of attempts that were undone", rest)
	}
	again := ""
	if strings.Contains(p.Why, latestRehearsal) {
		again = "; pgrunbook rehearse measures it anew"
	}
	if strings.Contains(p.Why, roundTrips) {
		again += "; the round trips are shorter where pgrunbook runs nearer to the servers"
	}
	return fmt.Errorf("predicted write block of %s is over max_write_block %s%s: %s%s", p.Counts(), p.Budget, beside, p.Why, again)
}

// sizesAt is askSizes in a session of its own, where the side can be reached.
func (c *costs) sizesAt(ctx context.Context, env *Env, side engine.Side) {
	server := env.Server(side)
	if c.planned = c.reloads > 0; !c.planned || server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	conn, err := server.Connect(ctx, pg.Use{Name: "sizes", ReadOnly: true})
	if err != nil {
		return // the prediction says that it knows the plan's
	}
	c.askSizes(ctx, conn, env.Scope)
	_ = conn.Close(context.WithoutCancel(ctx))
}
