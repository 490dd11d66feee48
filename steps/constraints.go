package steps

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// constraintsStep makes, after the first exact pass, what could not stand while rows of different
// times were on the target: unique and exclusion constraints, foreign keys, and then what would
// fire or filter: rules, policies, triggers. It looks what is there and valid; its cursor tells only what came since the
// structure was restored.
type constraintsStep struct{ env *Env }

func newConstraints(env *Env) engine.Step { return &constraintsStep{env: env} }

func (s *constraintsStep) ID() engine.StepID   { return constraintsID }
func (s *constraintsStep) Phase() engine.Phase { return engine.PhaseCatchUp }

// Fingerprint covers nothing: the objects are read from the source when the step runs, so that an
// index made meanwhile is carried as well.
func (s *constraintsStep) Fingerprint() string { return "constraints/1" }

// small tables get their unique indexes in one go; larger ones CONCURRENTLY, so that passes go on.
const smallTable = 64 << 20

// Plan lists the statements, object by object.
func (s *constraintsStep) Plan(ctx context.Context) (engine.StepPlan, error) {
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title: "make the remaining indexes and constraints, foreign keys, rules, policies and triggers on the target",
		Why:   "rows that were read at different times could break them before the first exact pass",
	}
	source, err := s.env.Source.Connect(ctx, pg.Use{Name: "plan", ReadOnly: true})
	if err != nil {
		return p, err
	}
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	objects, err := dump.PostData(ctx, source, s.env.Scope)
	if err != nil {
		return p, err
	}
	if s.env.Runbook.Schema.Mode == "existing" {
		p.Title = "leave indexes, constraints and triggers as the target has them (schema { mode = \"existing\" })"
		return p, nil
	}
	done := s.builtByCopy(objects)
	p.Estimate = building(s.env.Scope.Tables, objects, done, s.env.Runbook.Copy.Workers)
	for i, o := range objects {
		if o.NotCarried != "" {
			p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Object: o.Name, Text: o.NotCarried})
			continue
		}
		if done[i] {
			continue
		}
		statements := o.SQL
		if o.Constraint != "" {
			statements = append([]string{o.SQL[0], o.Constraint}, o.SQL[1:]...)
		}
		if o.Kind == dump.ForeignKey && !o.NotValid {
			statements = append(statements[:len(statements):len(statements)], "ALTER TABLE "+pg.Name(o.Table.Schema, o.Table.Name)+" VALIDATE CONSTRAINT "+pgx.Identifier{o.Name}.Sanitize())
		}
		for _, sql := range statements {
			p.Actions = append(p.Actions, engine.Action{On: engine.Target, Object: o.String(), SQL: sql, Group: string(o.Kind)})
		}
		for _, sql := range o.AtFlip {
			p.Actions = append(p.Actions, engine.Action{On: engine.Target, Object: o.String(), SQL: sql, Why: "at the flip: before it, it would fire for our own sessions or refuse rows that the source has", Group: "at the flip"})
		}
	}
	if len(p.Actions) > 0 {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoad, Text: "building and validating reads every row on the target; the source is not touched"})
	}
	return p, nil
}

// builtByCopy gives the objects that the copy phase makes: keys and plain indexes of the tables
// whose rows are loaded live, by their place in objects.
func (s *constraintsStep) builtByCopy(objects []dump.Object) map[int]bool {
	live := map[scope.Name]bool{}
	for _, t := range s.env.Scope.Tables {
		if t.Data == scope.Live {
			for n := range dump.Relations(t) {
				live[n] = true
			}
		}
	}
	out := map[int]bool{}
	for i, o := range objects {
		if live[o.Table] && (o.Key || o.Kind == dump.Index) {
			out[i] = true
		}
	}
	return out
}

// Apply may be called again after any death.
func (s *constraintsStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if s.env.Runbook.Schema.Mode == "existing" || !s.env.Runbook.Schema.Enabled {
		return nil
	}
	ctx, limits, err := watchLimits(ctx, s.env, cp)
	if err != nil {
		return err
	}
	defer limits.close()
	// Building takes hours where tables are large: meanwhile exact passes go on, as nothing less may be
	// on the target while a key is validated.
	defer followLoaded(ctx, s.env, limits, cp, false)()
	if err := s.build(ctx, cp); err != nil {
		return cmp.Or(context.Cause(ctx), err) // a limit that said stop
	}
	return nil
}

func (s *constraintsStep) build(ctx context.Context, cp engine.Checkpoint) error {
	sides, err := openSides(ctx, s.env, "constraints")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	objects, err := toBuild(ctx, s.env, cp, sides.source)
	if err != nil {
		return err
	}
	roles, err := s.roles(ctx, sides)
	if err != nil {
		return err
	}
	apart, err := dump.KeyApart(ctx, sides.target, s.env.Scope.Tables)
	if err != nil {
		return err
	}
	for _, t := range apart { // catch_up exchanges it
		names := dump.Relations(t)
		objects = slices.DeleteFunc(objects, func(o dump.Object) bool { return o.Key && names[o.Table] })
	}
	objects = dump.WithRoles(objects, roles.rename)
	b := &dump.Builder{Target: s.env.Target, Objects: objects, Parallel: max(1, s.env.Runbook.Copy.Workers), Waiting: waiting(cp, engine.Target, "build on the target"), Hold: s.env.betweenParts(cp.Emit), Done: func(o dump.Object) {
		cp.Emit(engine.Event{Kind: engine.EventProgress, Object: o.String(), Message: "made " + o.String()})
	}}
	if err := s.indexes(ctx, b); err != nil {
		return err
	}
	failpoint.Hit("constraints.indexes")
	if err := s.foreignKeys(ctx, b, cp); err != nil {
		return err
	}
	failpoint.Hit("constraints.foreign_keys")
	if err := s.rest(ctx, cp, sides, roles); err != nil {
		return err
	}
	failpoint.Hit("constraints.rest")
	// A materialized view that needs a primary key comes only with the rest, so indexes of all of
	// them come after it.
	if err := b.EnsureAll(ctx, dump.Pick(objects, func(o dump.Object) bool { return isIndex(o) && o.Late }), false); err != nil {
		return err
	}
	others := dump.Pick(objects, func(o dump.Object) bool {
		return !isIndex(o) && o.Kind != dump.ForeignKey && o.Kind != dump.EventTrigger
	})
	if err := b.EnsureAll(ctx, others, false); err != nil {
		return err
	}
	return s.eventTriggers(ctx, b, cp)
}

// eventTriggers need a superuser, which a managed cloud does not give: one that is refused for that
// is named and left out.
func (s *constraintsStep) eventTriggers(ctx context.Context, b *dump.Builder, cp engine.Checkpoint) error {
	for _, o := range dump.Pick(b.Objects, func(o dump.Object) bool { return o.Kind == dump.EventTrigger }) {
		err := b.EnsureAll(ctx, []dump.Object{o}, false)
		if pg.SQLState(err) == "42501" { // insufficient_privilege
			text := o.String() + " is not made: the target's role may not create event triggers"
			cp.Emit(engine.Event{
				Kind: engine.EventDiagnosed, Level: "warning", Object: o.String(), Message: text, SQLState: "42501",
				Finding: &engine.Finding{Code: "RUN011", Severity: engine.SeverityWarning, Side: engine.Target, Object: o.String(), Text: text, Fix: "Let a superuser run on the target: " + o.SQL[0] + ";"},
			})
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isIndex(o dump.Object) bool {
	return o.Kind == dump.Index || o.Kind == dump.Unique || o.Kind == dump.Exclusion
}

// indexes makes those of small relations in one go and those of large ones CONCURRENTLY. Exclusion
// and temporal constraints know no CONCURRENTLY: writers wait while they are built.
func (s *constraintsStep) indexes(ctx context.Context, b *dump.Builder) error {
	large := map[scope.Name]bool{}
	for _, t := range s.env.Scope.Tables {
		if t.Bytes <= smallTable {
			continue
		}
		for n := range dump.Relations(t) {
			large[n] = true
		}
	}
	for _, concurrently := range []bool{false, true} {
		list := dump.Pick(b.Objects, func(o dump.Object) bool { return isIndex(o) && !o.Late && large[o.Table] == concurrently })
		if err := b.EnsureAll(ctx, list, concurrently); err != nil {
			return err
		}
	}
	return nil
}

// foreignKeys adds and validates. Rows that break one are the source's own: it is named and stays
// NOT VALID.
func (s *constraintsStep) foreignKeys(ctx context.Context, b *dump.Builder, cp engine.Checkpoint) error {
	keys := dump.Pick(b.Objects, func(o dump.Object) bool { return o.Kind == dump.ForeignKey })
	broken, err := b.EnsureForeignKeys(ctx, keys)
	if err != nil {
		return err
	}
	for _, v := range broken {
		text := fmt.Sprintf("%s is broken by rows of the source and stays NOT VALID on the target: %s", v.Object, v.Detail)
		cp.Emit(engine.Event{
			Kind: engine.EventDiagnosed, Level: "warning", Object: v.Object.String(), Message: text,
			Finding: &engine.Finding{
				Code: "RUN010", Severity: engine.SeverityWarning, Side: engine.Source, Object: v.Object.String(), Text: text,
				Fix: "Mend the rows on the source and validate it on the target: ALTER TABLE " + pg.Name(v.Object.Table.Schema, v.Object.Table.Name) + " VALIDATE CONSTRAINT " + pgx.Identifier{v.Object.Name}.Sanitize() + ";",
			},
		})
	}
	return nil
}

// rest restores what only pg_restore knows: views and functions that need a primary key, and
// default privileges.
func (s *constraintsStep) rest(ctx context.Context, cp engine.Checkpoint, sides *sideConns, roles *roleMap) error {
	present, err := dump.ReadPresent(ctx, sides.target)
	if err != nil {
		return err
	}
	a, o, err := (&schemaStep{env: s.env}).archive(ctx, sides, roles, present)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	entries, err := a.Rest(ctx, sides.source, sides.target)
	if err != nil || len(entries) == 0 {
		return err
	}
	if err := cameSince(ctx, s.env, cp, sides.source, restedKinds); err != nil {
		return err
	}
	return restoreEntries(ctx, s.env, cp, sides, a, o, roles, entries)
}

// restoreEntries makes entries of an archive on the target, owned by whom the runbook says.
func restoreEntries(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, a *dump.Archive, o dump.RestoreOptions, roles *roleMap, entries []dump.Entry) error {
	if err := a.Restore(ctx, env.Target, entries, o); err != nil {
		return err
	}
	if !roles.mapped {
		return nil
	}
	if err := dump.SetOwners(ctx, sides.source, sides.target, entries, roles.rename, waiting(cp, engine.Target, "set an owner on the target")); err != nil {
		return err
	}
	return dump.SetGrants(ctx, sides.source, sides.target, entries, roles.rename)
}

// roles gives the target's names for roles, as the schema phase saw them.
func (s *constraintsStep) roles(ctx context.Context, sides *sideConns) (*roleMap, error) {
	needed, err := dump.Roles(ctx, sides.source, s.env.Scope)
	if err != nil {
		return nil, err
	}
	return (&schemaStep{env: s.env}).readRoleMap(ctx, sides.target, needed)
}
