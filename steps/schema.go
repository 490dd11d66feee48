package steps

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// schemaStep makes everything on the target that must be there before the rows: roles, settings,
// tables without keys, indexes, constraints and triggers. Then it gates the tables, closed, so that
// nobody writes there by mistake.
type schemaStep struct{ env *Env }

func newSchema(env *Env) engine.Step { return &schemaStep{env: env} }

func (s *schemaStep) ID() engine.StepID   { return "schema" }
func (s *schemaStep) Phase() engine.Phase { return engine.PhaseSchema }

// Fingerprint covers what decides whose the objects are.
func (s *schemaStep) Fingerprint() string {
	c := s.env.Runbook.Schema
	b, err := json.Marshal([]any{c.Mode, c.Roles, c.Owners, c.Settings})
	if err != nil {
		panic(fmt.Sprintf("schema settings are not JSON: %v", err)) // strings and a map of strings: cannot happen
	}
	return fmt.Sprintf("schema/%x", sha256.Sum256(b))
}

func (s *schemaStep) existing() bool { return s.env.Runbook.Schema.Mode == "existing" }

// schemaCursor is the step's progress. Each part is recorded when it is whole.
type schemaCursor struct {
	Before []dump.Made `json:"before"` // what the target held before the restore
	Begun  bool        `json:"begun"`  // Before is set; the restore may have made something
	// Present is what of the target's schemas and extensions stays as it is; with Begun.
	Present  dump.Present `json:"present"`
	Roles    []string     `json:"roles,omitempty"`
	Restored bool         `json:"restored"`
	Owned    bool         `json:"owned"`
	Settings bool         `json:"settings"`
	Made     []dump.Made  `json:"made,omitempty"` // what the restore made, for abort
	// SettingsMade are those that were carried, SettingsBefore what the target had before.
	SettingsMade   []dump.Setting `json:"settings_made,omitempty"`
	SettingsBefore []dump.Setting `json:"settings_before,omitempty"`
	// Definitions are the source's from before the dump: what later ones are compared with.
	Definitions map[string]string `json:"definitions,omitempty"`
}

// Apply makes what is missing, part by part.
func (s *schemaStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.env.neverAgain(ctx, s.ID()); err != nil {
		return err
	}
	var c schemaCursor
	if _, err := cp.Load(ctx, &c); err != nil {
		return err
	}
	sides, err := openSides(ctx, s.env, "schema")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if c.Definitions == nil {
		if c.Definitions, err = s.definitionsNow(ctx, sides.source); err != nil {
			return err
		}
		if err := cp.Save(ctx, nil, c); err != nil {
			return err
		}
	}
	if !s.existing() {
		if err := s.restore(ctx, sides, &c, cp); err != nil {
			return err
		}
	}
	if err := s.env.unpaused(ctx, cp.Emit); err != nil {
		return err
	}
	if err := s.compare(ctx, sides, cp); err != nil {
		return err
	}
	return s.close(ctx, sides.target, cp)
}

// definitionsNow is read before the dump: what changes between the two is found as changed, and as
// what the target has already.
func (s *schemaStep) definitionsNow(ctx context.Context, source *pgx.Conn) (map[string]string, error) {
	items, err := dump.Inventory(ctx, source, s.env.Scope)
	if err != nil {
		return nil, sided(engine.Source, err)
	}
	return dump.Fingerprint(items), nil
}

// differences names what the target's tables have otherwise; of those that somebody else made, partitions and heirs as well.
func (s *schemaStep) differences(ctx context.Context, sides *sideConns) ([]string, error) {
	list, err := dump.Differences(ctx, sides.target, s.env.Scope, s.existing())
	if err != nil || !s.existing() {
		return list, err
	}
	trees, err := dump.TreeDifferences(ctx, sides.source, sides.target, s.env.Scope)
	return append(list, trees...), err
}

// compare refuses a target whose tables are not the source's. What we restored differs only where the
// source changed after the plan.
func (s *schemaStep) compare(ctx context.Context, sides *sideConns, cp engine.Checkpoint) error {
	hint := likeSource
	differences, err := s.differences(ctx, sides)
	if err == nil && len(differences) > 0 && !s.existing() {
		hint = "The source's tables changed since the plan was made: abort the run and plan again."
		if s.env.Runbook.Schema.OnDDL != "carry" {
			hint = `The source's tables changed since the plan was made: set schema { on_ddl = "carry" } and run the same command again, or abort the run and plan again.`
		} else if err = align(ctx, s.env, cp, sides); err == nil {
			differences, err = dump.Differences(ctx, sides.target, s.env.Scope, false)
		}
	}
	if err != nil || len(differences) == 0 {
		return err
	}
	return unlike(differences, 20, hint)
}

const likeSource = "Make the target's tables like the source's, or let the runbook restore them into an empty database: schema { mode = \"restore\" }."

// unlike is the error that names differences, so many at most.
func unlike(differences []string, most int, hint string) error {
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "comparing the tables of both sides", Hint: hint,
		Err: fmt.Errorf("%s: %s", engine.Plural(len(differences), "difference"), strings.Join(cut(differences, most), "; ")),
	}
}

func cut(list []string, n int) []string {
	if len(list) > n {
		return append(list[:n:n], fmt.Sprintf("and %d more", len(list)-n))
	}
	return list
}

// gatedAtOnce is how many tables of the target get their gate between two looks whether people have said
// pause.
const gatedAtOnce = 50

// close gates the target's tables and closes the gate: from here on only our own sessions write.
func (s *schemaStep) close(ctx context.Context, target *pgx.Conn, cp engine.Checkpoint) error {
	failpoint.Hit("schema.compared")
	if err := s.env.whileSourceWrites(ctx, s.ID()); err != nil {
		return err
	}
	if err := capture.Prepare(ctx, target, s.env.Run); err != nil {
		return err
	}
	run, unpaused := s.env.runAt(engine.Target), s.env.betweenParts(cp.Emit)
	if err := gate.Prepare(ctx, target, run); err != nil {
		return err
	}
	for some := range slices.Chunk(s.env.Scope.Tables, gatedAtOnce) {
		if err := unpaused(ctx); err != nil {
			return err
		}
		if err := gate.Arm(ctx, target, run, some, waiting(cp, engine.Target, "gate a table of the target")); err != nil {
			return err
		}
	}
	failpoint.Hit("schema.gated")
	return gate.CloseNow(ctx, target, s.env.Run)
}

// restore makes roles and definitions.
func (s *schemaStep) restore(ctx context.Context, sides *sideConns, c *schemaCursor, cp engine.Checkpoint) error {
	roles, err := s.prepareRoles(ctx, sides, c, cp)
	if err != nil {
		return err
	}
	if !c.Restored || !c.Owned {
		if err := s.definitions(ctx, sides, c, cp, roles); err != nil {
			return err
		}
	}
	if c.Settings || !s.env.Runbook.Schema.Settings {
		return nil
	}
	settings, err := dump.Settings(ctx, sides.source)
	if err != nil {
		return err
	}
	if c.SettingsMade == nil { // else an earlier call may have applied some
		if c.SettingsBefore, err = dump.Settings(ctx, sides.target); err != nil {
			return err
		}
	}
	c.SettingsMade = dump.RenamedSettings(settings, roles.rename)
	if err := cp.Save(ctx, nil, c); err != nil {
		return err
	}
	if err := dump.ApplySettings(ctx, sides.target, c.SettingsMade); err != nil {
		return &engine.Error{Op: "carrying the database's settings", Err: err, Hint: "ALTER DATABASE takes its ownership; ALTER ROLE takes CREATEROLE and, from 16 on, GRANT that role TO ours WITH ADMIN OPTION; some settings take a superuser. Or leave all of them out: schema { settings = false }."}
	}
	c.Settings = true
	return cp.Save(ctx, nil, c)
}

// Undo drops what the restore made, tables with their rows. It may be called again: what is gone is
// passed over. Roles stay: other databases may use them by now.
func (s *schemaStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	var c schemaCursor
	found, err := cp.Load(ctx, &c)
	if err != nil || !found || !c.Begun {
		return err
	}
	conn, err := s.env.Target.Connect(ctx, pg.Use{Name: "schema", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	made := c.Made
	if !c.Restored {
		now, err := dump.Objects(ctx, conn)
		if err != nil {
			return err
		}
		made = dump.NewSince(c.Before, now)
	}
	if err := dump.UndoSettings(ctx, conn, c.SettingsMade, c.SettingsBefore); err != nil {
		return err
	}
	return dump.DropMade(ctx, conn, made, waiting(cp, engine.Target, "drop what the schema phase made"))
}
