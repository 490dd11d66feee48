package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Statements are what InstallOn runs for one table, on a side whose members are those of the
// scope: for plans. Locks and comments are left out.
func Statements(run scope.Run, t scope.Table, major int) []string {
	if t.Capture == scope.NoCapture || t.Capture == "" {
		return nil
	}
	var list []string
	if t.Identity == scope.ByKey {
		list = append(list, deltaTableSQL(t.Key, major))
	} else {
		list = append(list, imageTableSQL(t.ID, major))
	}
	list = append(list, functionSQL(t, t.OID, major))
	kind := map[bool]string{false: "r", true: "p"}
	add := func(name scope.Name, kind string) {
		for _, g := range triggersFor(t.Capture, kind) {
			list = append(list, g.sql(run, t, name), enableSQL(name, triggerPrefix+g.name))
		}
	}
	add(t.Name, kind[t.Kind == scope.Partitioned])
	for _, m := range t.Members {
		if !m.Foreign {
			add(m.Name, kind[!m.Leaf])
		}
	}
	return list
}

// Install captures one table on the side behind srv. See InstallOn.
func Install(ctx context.Context, srv *pg.Server, run scope.Run, t scope.Table, onWait OnWait) error {
	conn, err := srv.Connect(ctx, pg.Use{Name: "capture"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return InstallOn(ctx, conn, run, t, onWait)
}

// InstallOn captures one table: delta, function, triggers on every member of its tree, each in
// its own transaction, and at last the row in pgrunbook.captured. From its return on every
// committed write leaves its key or image. CREATE TRIGGER waits for writers in flight, so nothing
// slips between.
//
// It may be called again: triggers that are missing, wrong or not ENABLE ALWAYS are mended. The
// recorded fingerprint of a table that is captured already stays, so that Check still reports what
// happened, to the function as well; members that joined since then have all their keys logged (see
// Relog; InstallClosed leaves that out). Another table under the name of one that is captured is
// ErrAnother, and nothing of it is touched: its rows from before the triggers would be in no delta and
// in no load. Prepare comes first. A table with NoCapture is left alone.
func InstallOn(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, onWait OnWait) error {
	joined, err := install(ctx, conn, run, t, onWait)
	if err != nil {
		return err
	}
	for _, m := range joined {
		if err := Relog(ctx, conn, t, m); err != nil {
			return err
		}
	}
	return nil
}

// InstallClosed is InstallOn on a side that takes no writes. The rows of members that joined came there with passes: logged,
// they would look like somebody's writes, and wait for a pass in the other direction.
func InstallClosed(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, onWait OnWait) error {
	_, err := install(ctx, conn, run, t, onWait)
	return err
}

// install gives the members with rows that joined a captured table.
func install(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, onWait OnWait) (joined []scope.Name, err error) {
	if t.Capture == scope.NoCapture || t.Capture == "" {
		return nil, nil
	}
	before, err := recorded(ctx, conn, t)
	if err != nil {
		return nil, err
	}
	rels, err := tree(ctx, conn, t.Name)
	switch {
	case before != nil && (errors.Is(err, errNoTable) || err == nil && before.Rel != rels[0].OID):
		return nil, another(t)
	case err != nil:
		return nil, err
	}
	if err := fits(t, rels); err != nil {
		return nil, err
	}
	// Where triggers of the other kind stand, the function becomes another one together with them.
	swap := before != nil && before.Mode != mode(t)
	if !swap {
		if err := objects(ctx, conn, run, t, rels[0].OID, before); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("capture.objects")
	for range 10 { // a member may join while we install
		for _, r := range rels {
			if err := ensure(ctx, conn, run, t, r, before == nil, swap, onWait); err != nil {
				return nil, err
			}
			failpoint.Hit("capture.triggers")
		}
		again, err := tree(ctx, conn, t.Name)
		if errors.Is(err, errNoTable) || err == nil && again[0].OID != rels[0].OID {
			return nil, another(t)
		}
		if err != nil {
			return nil, err
		}
		failpoint.Hit("capture.captured")
		if slices.Equal(again, rels) {
			return settle(ctx, conn, t, rels, before)
		}
		rels = again
	}
	return nil, &engine.Error{Op: "capturing", Object: pg.Name(t.Schema, t.Name.Name), Err: errors.New("its partitions keep changing"), Hint: "Run the same command again."}
}

// ErrAnother says that a table was dropped since its capture began; it may have been made again, with
// other rows.
var ErrAnother = errors.New("it was dropped, or another table has its name")

// ErrStatement says that a table came to inherit, or to pass on its columns, and needs row triggers.
var ErrStatement = errors.New("statement triggers are wrong there")

func another(t scope.Table) error {
	return &engine.Error{Class: engine.ClassStale, Op: "capturing", Object: pg.Name(t.Schema, t.Name.Name), Err: ErrAnother, Hint: newChange(t, Dropped, Leave, "").Hint}
}

// fits refuses rows that nobody would carry, and what would break the application's writes or log into the wrong delta
// (transition tables cannot be collected from foreign children; a parent's statement trigger sees
// the children's rows).
func fits(t scope.Table, rels []relation) error {
	name := pg.Name(t.Schema, t.Name.Name)
	if t.Identity == scope.ByKey && (t.Key == nil || len(t.Key.Columns) == 0) {
		return &engine.Error{Op: "capturing", Object: name, Err: errors.New("it has no key"), Hint: "Give it a key, identity or data = \"at_freeze\" in a table block."}
	}
	for _, r := range rels {
		if r.Detaching != "" {
			member := pg.Name(r.Schema, r.Name.Name)
			return &engine.Error{
				Class: engine.ClassStale, Op: "capturing", Object: name,
				Err:  fmt.Errorf("%s is half detached: its rows are not seen through %s and are in no table of their own", member, r.Detaching),
				Hint: fmt.Sprintf("Where no DETACH CONCURRENTLY is at work: ALTER TABLE %s DETACH PARTITION %s FINALIZE. Then run the same command again.", r.Detaching, member),
			}
		}
	}
	if t.Capture != scope.Statement {
		return nil
	}
	for _, r := range rels {
		if r.Kind == "f" || r.Inherits {
			return &engine.Error{
				Class: engine.ClassStale, Op: "capturing", Object: name,
				Err:  fmt.Errorf("%s is foreign or inherits: %w", pg.Name(r.Schema, r.Name.Name), ErrStatement),
				Hint: "Run plan again: it chooses row triggers for such tables.",
			}
		}
	}
	return nil
}

// ensure makes one relation's triggers right; what stood there first under a name of ours is somebody
// else's and is refused. Nothing is locked where nothing is wrong.
func ensure(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, r relation, first, swap bool, onWait OnWait) error {
	have, ok, err := inspect(ctx, conn, run, t, r)
	if err != nil || ok {
		return err
	}
	mode := pg.ShareRowExclusive
	for _, f := range have {
		if f.theirs && first {
			return Theirs(r.Name, f.name)
		}
		if !f.right {
			mode = pg.AccessExclusive // DROP TRIGGER
		}
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return err
	}
	err = WithLock(ctx, conn, r.Name, r.OID, mode, onWait, func(ctx context.Context, tx pgx.Tx) error {
		if swap {
			if err := script(ctx, tx, functionSQL(t, r.OID, major)); err != nil {
				return err
			}
		}
		for _, f := range have {
			if f.right {
				continue
			}
			if _, err := tx.Exec(ctx, dropSQL(r.Name, f.name)); err != nil {
				return err
			}
		}
		for _, g := range triggersFor(t.Capture, r.Kind) {
			f := have[triggerPrefix+g.name]
			if !f.right {
				if _, err := tx.Exec(ctx, g.sql(run, t, r.Name)); err != nil {
					return err
				}
			}
			if f.right && f.enabled == always() {
				continue
			}
			if _, err := tx.Exec(ctx, enableSQL(r.Name, triggerPrefix+g.name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("capturing %s: %w", pg.Name(r.Schema, r.Name.Name), err)
	}
	return nil
}

// Theirs refuses a trigger of somebody else that has a name of ours.
func Theirs(rel scope.Name, trigger string) error {
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "looking at the triggers of", Object: pg.Name(rel.Schema, rel.Name),
		Err:  fmt.Errorf("trigger %s is not one of ours and has a name of ours", trigger),
		Hint: fmt.Sprintf("Rename it: ALTER TRIGGER %s ON %s RENAME TO ...;", pgx.Identifier{trigger}.Sanitize(), pg.Name(rel.Schema, rel.Name)),
	}
}

func dropSQL(rel scope.Name, name string) string {
	return fmt.Sprintf("DROP TRIGGER IF EXISTS %s ON %s", pgx.Identifier{name}.Sanitize(), pg.Name(rel.Schema, rel.Name))
}

// settle records a table that is captured for the first time, or gives the members with rows that joined a captured one.
func settle(ctx context.Context, conn *pgx.Conn, t scope.Table, rels []relation, before *record) (joined []scope.Name, err error) {
	if before == nil || before.Shape != shape(t) {
		return nil, store(ctx, conn, t, rels[0].OID)
	}
	if before.Mode != mode(t) { // what happened to it is still to be seen
		if _, err := conn.Exec(ctx, "UPDATE pgrunbook.captured SET mode = $2 WHERE id = $1", t.ID, mode(t)); err != nil {
			return nil, fmt.Errorf("recording %s as captured: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	for _, r := range rels {
		if r.Kind == "r" && !slices.Contains(before.Members, r.OID) {
			joined = append(joined, r.Name)
		}
	}
	return joined, nil
}

// mode is what pgrunbook.captured calls a table's capture: "statement key", "row full_row".
func mode(t scope.Table) string { return string(t.Capture) + " " + string(t.Identity) }

func shape(t scope.Table) string {
	if t.Key == nil || t.Identity != scope.ByKey {
		return ""
	}
	return t.Key.Shape
}

// Relog logs every row of one relation as changed: its key goes to the delta, so that passes carry
// the row again. It needs no lock: a row that is written after the snapshot logs itself. A table
// without a key cannot do that: it is ErrUnseen unless every row's image is still waiting.
func Relog(ctx context.Context, conn *pgx.Conn, t scope.Table, rel scope.Name) error {
	if t.Identity != scope.ByKey {
		return imaged(ctx, conn, t, rel)
	}
	sql := fmt.Sprintf("INSERT INTO %s (rel, %s) SELECT %d, %s FROM ONLY %s AS o", DeltaName(t.Key.Shape), names(t.Key), t.ID, keys(t.Key, "o"), pg.Name(rel.Schema, rel.Name))
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("logging rows of %s: %w", pg.Name(rel.Schema, rel.Name), err)
	}
	return nil
}

// ErrUnseen says that a member joined a table without a key with rows that no image shows: its triggers stand, and the
// table must be loaded again.
var ErrUnseen = errors.New("it has rows from before it was captured, and no key")

// imaged makes sure that each row of a relation left an image: an image and its row have the same xmin. That some row of
// the transaction did is not enough. One statement through the root writes to members with triggers and to the one
// without, so where every row has such an image the rows themselves are counted: there are no more of them than images.
func imaged(ctx context.Context, conn *pgx.Conn, t scope.Table, rel scope.Name) error {
	name := pg.Name(rel.Schema, rel.Name)
	unseen := false
	for _, sql := range []string{
		fmt.Sprintf("SELECT EXISTS (SELECT FROM ONLY %s o WHERE NOT EXISTS (SELECT FROM %s i WHERE i.xmin = o.xmin))", name, ImageName(t.ID)),
		fmt.Sprintf(`SELECT EXISTS (SELECT FROM (SELECT o.xmin AS x, %s COLLATE "C" AS img, count(*) AS n FROM ONLY %s o GROUP BY 1, 2) r
			LEFT JOIN (SELECT i.xmin AS x, i.img COLLATE "C" AS img, sum(CASE i.op WHEN '%s' THEN 1 WHEN '%s' THEN -1 ELSE 0 END) AS n FROM %s i GROUP BY 1, 2) m
			ON m.x = r.x AND m.img = r.img WHERE r.n > coalesce(m.n, 0))`, Image(t, "o"), name, OpInsert, OpDelete, ImageName(t.ID)),
	} {
		err := inTx(ctx, conn, func(tx pgx.Tx) error {
			for _, s := range recordSettings {
				if _, err := tx.Exec(ctx, "SET LOCAL "+s[0]+" = "+s[1]); err != nil {
					return err
				}
			}
			return tx.QueryRow(ctx, sql).Scan(&unseen)
		})
		if err != nil {
			return fmt.Errorf("looking for rows of %s without an image: %w", name, err)
		}
		if unseen {
			return &engine.Error{Op: "capturing", Object: name, Err: ErrUnseen, Hint: "Run pgrunbook apply: catch_up loads the table again."}
		}
	}
	return nil
}
