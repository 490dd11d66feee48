package steps

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// copyStep loads every live table: chunks, scrub, key, plain indexes, statistics. Afterwards
// passes can follow all of them.
type copyStep struct{ env *Env }

func newCopy(env *Env) engine.Step { return &copyStep{env: env} }

func (s *copyStep) ID() engine.StepID   { return copyID }
func (s *copyStep) Phase() engine.Phase { return engine.PhaseCopy }

// Fingerprint covers how each table is loaded. Workers and chunk sizes may change in mid-run.
func (s *copyStep) Fingerprint() string {
	methods := map[string]string{}
	if s.env.Scope != nil {
		for _, t := range ofPlan(s.env.Scope) {
			methods[t.Schema+"."+t.Name.Name] = string(t.Method) + " " + string(t.Data) + " " + string(t.Identity)
		}
	}
	b, err := json.Marshal(methods)
	if err != nil {
		panic(fmt.Sprintf("methods are not JSON: %v", err)) // a map of strings: cannot happen
	}
	return fmt.Sprintf("copy/%x", sha256.Sum256(b))
}

// copyID is the step's name.
const copyID engine.StepID = "copy"

// definitionsMax bounds, beside the number of tables, how often a load goes on after the source's tables or
// definitions changed under it.
const definitionsMax = 20

// externalApproval is what a person says when the tables of method external are loaded.
const externalApproval = "external-copy"

// externalWait begins the error of a run that waits for them; status knows the wait by it.
const externalWait = "waiting for somebody else's load of"

// Apply loads what is not loaded. The journal knows which chunks are.
func (s *copyStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.env.neverAgain(ctx, s.ID()); err != nil {
		return err
	}
	ctx, limits, err := watchLimits(ctx, s.env, cp)
	if err != nil {
		return err
	}
	defer limits.close()
	for rounds := 0; ; rounds++ {
		err := s.load(ctx, limits, cp)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			return cause
		}
		if rounds == definitionsMax+len(s.env.Scope.Tables) {
			return &engine.Error{Op: "loading", Err: fmt.Errorf("the source's tables changed %d times under the load: %w", rounds, err), Hint: "Run the same command again: it goes on from here."}
		}
		mended, why := s.mend(ctx, limits, cp, err)
		if why != nil {
			return errors.Join(why, err)
		}
		if !mended {
			return err
		}
	}
}

// load runs until all tables follow, or one asks for more than a load can do. Passes over what is loaded end
// with it: what mend changes they must not see half.
func (s *copyStep) load(ctx context.Context, limits *limits, cp engine.Checkpoint) error {
	loader, err := s.loader(ctx, limits, cp)
	if err != nil {
		return err
	}
	defer followLoaded(ctx, s.env, limits, cp, true)()
	return loader.Run(ctx)
}

// loader puts a load together from the runbook, the journal and the source's definitions.
func (s *copyStep) loader(ctx context.Context, limits *limits, cp engine.Checkpoint) (*load.Loader, error) {
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "copy", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var objects []dump.Object
	if s.env.Runbook.Schema.Mode != "existing" { // there the schema phase has seen that every key has its index
		if objects, err = toBuild(ctx, s.env, cp, conn); err != nil {
			return nil, err
		}
	}
	progress := &copyProgress{cp: cp, tables: map[int32]load.Progress{}, began: time.Now()}
	for _, t := range s.env.Scope.Tables {
		if t.Data == scope.Live {
			progress.all += t.Bytes
		}
	}
	return load.New(load.Config{
		From: s.env.Source, To: s.env.Target, Run: s.env.Run, Journal: s.env.Journal, Step: s.ID(), Tables: s.env.Scope.Tables,
		Builder: &dump.Builder{Target: s.env.Target, Objects: objects, Waiting: waiting(cp, engine.Target, "build on the target"), Hold: s.env.betweenParts(cp.Emit)},
		Control: limits.control, Rate: limits.rate, Bulk: s.bulk(cp), Loaded: s.loaded, Emptied: s.emptied, Check: s.check, Explain: s.explain,
		Progress: progress.table, Emit: cp.Emit, Log: s.env.Log,
	}), nil
}

// loaded asks whether the tables of method external are there.
func (s *copyStep) loaded(ctx context.Context, tables []scope.Table) error {
	_, found, err := s.env.Journal.Approval(ctx, externalApproval, s.env.Journal.Digest)
	if err != nil || found {
		return err
	}
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Display()
	}
	return &engine.Error{
		Class: engine.ClassApproval, Op: externalWait, Object: joinSome(names), Err: errors.New("nobody has said that it is done"),
		Hint: fmt.Sprintf("Load these tables now, from a snapshot that is taken after this message, in sessions with PGOPTIONS=\"-c session_replication_role=replica -c pgrunbook.mark=%s\", which pass the target's closed gate. Then: pgrunbook approve %s --by WHO, and run the same command again.", s.env.Run.Mark, externalApproval),
	}
}

// emptied makes a person say anew that a table of method external is loaded, once what was loaded is gone.
func (s *copyStep) emptied(ctx context.Context, tx pgx.Tx, t scope.Table) error {
	if t.Method != scope.External {
		return nil
	}
	return s.env.Journal.UseUp(ctx, tx, externalApproval)
}

// bulk loads whole tables with pg_dump and pg_restore.
func (s *copyStep) bulk(cp engine.Checkpoint) func(ctx context.Context, tables []scope.Table) error {
	return func(ctx context.Context, tables []scope.Table) error {
		tools, err := dump.Find(ctx, s.env.Plan.Source.Major, s.env.Plan.Target.Major)
		if err != nil {
			return err
		}
		o := dump.DataOptions{Tables: tables, Jobs: s.env.Runbook.Copy.Workers, Mark: s.env.Run.Mark, ReplicaRole: s.env.Runbook.Target.ReplicaRoleFunction == "", TargetMajor: s.env.Plan.Target.Major}
		cp.Emit(engine.Event{Kind: engine.EventNote, Message: fmt.Sprintf("pg_dump reads %d tables in one snapshot", len(tables))})
		data, err := dump.DumpData(ctx, tools, s.env.Source, o)
		if err != nil {
			return err
		}
		how := ""
		if jobs := tools.RestoreJobs(o.Jobs, o.TargetMajor); jobs < o.Jobs {
			how = fmt.Sprintf(" in one session: pg_restore %s begins each with an error on a server of %d; one before 17 would take %d", tools.Version, o.TargetMajor, o.Jobs)
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Message: fmt.Sprintf("pg_restore writes %d tables%s", len(tables), how)})
		failpoint.Hit("copy.dumped")
		return errors.Join(s.fenced(ctx, func() error { return data.Restore(ctx, s.env.Target, o) }), data.Close())
	}
}

// fenced lets another program write to the target while nobody can take the run over: it knows no fence, and a runner that
// stood still may wake up right before it starts it.
func (s *copyStep) fenced(ctx context.Context, write func() error) error {
	conn, err := s.env.Target.Connect(ctx, pg.Use{Name: "load fence", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := s.env.fence(s.env.Target)(ctx, tx); err != nil {
			return err
		}
		return write()
	})
}

// copyProgress adds tables up for the step's own line.
type copyProgress struct {
	cp    engine.Checkpoint
	began time.Time
	all   int64 // bytes, estimated

	mu     sync.Mutex
	tables map[int32]load.Progress
	first  int64 // bytes that were there when this process began
	told   time.Time
}

// expected is how many bytes the whole load will have sent: tables take more room on disk than in
// COPY, small ones many times as much, and those that are done show by how much. The more of the
// whole they are, the more they say of the rest.
func expected(all, doneBytes, doneSize int64) int64 {
	if doneSize <= 0 {
		return max(all, doneBytes)
	}
	share := min(1, float64(doneSize)/float64(all))
	ratio := 1 + share*(float64(doneBytes)/float64(doneSize)-1)
	return doneBytes + int64(float64(max(0, all-doneSize))*ratio)
}

func (p *copyProgress) table(t load.Progress) {
	size := t.Size
	if t.Stage != load.Copying { // all of it is there, whatever the size on disk said
		size = t.Bytes
	}
	p.cp.Emit(engine.Event{
		Kind: engine.EventTable, Object: t.Table.Display(), Reason: string(t.Stage),
		Message: fmt.Sprintf("%s: %s", t.Table.Display(), t.Stage),
		Rows:    t.Rows, RowsAll: max(t.Table.Rows, t.Rows), Bytes: t.Bytes, BytesAll: size,
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, seen := p.tables[t.Table.ID]; !seen && time.Since(p.began) < time.Second {
		p.first += t.Bytes
	}
	p.tables[t.Table.ID] = t
	if time.Since(p.told) < time.Second {
		return
	}
	p.told = time.Now()
	var e engine.Event
	var doneBytes, doneSize int64
	for _, t := range p.tables {
		e.Rows += t.Rows
		e.Bytes += t.Bytes
		if t.Stage != load.Copying {
			doneBytes, doneSize = doneBytes+t.Bytes, doneSize+t.Table.Bytes // as in all
		}
	}
	e.Kind, e.BytesAll, e.Elapsed = engine.EventProgress, max(expected(p.all, doneBytes, doneSize), e.Bytes), time.Since(p.began)
	if s := e.Elapsed.Seconds(); s > 1 {
		e.Rate = float64(e.Bytes-p.first) / s
	}
	if e.Rate > 0 {
		e.ETA = time.Duration(float64(e.BytesAll-e.Bytes) / e.Rate * float64(time.Second))
	}
	e.Message = fmt.Sprintf("%d rows copied", e.Rows)
	p.cp.Emit(e)
}
