package pass

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
)

const wide = emptiedStages + 8

// widePair is so many tables that not all of their stages are emptied by every commit; each tenth
// has no key.
func widePair(t *testing.T) *pair {
	t.Helper()
	return newPair(t, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
		EXECUTE format('CREATE TABLE t%%s (id int %%s, v text)', i, CASE WHEN i %% 10 > 0 THEN 'PRIMARY KEY' END);
	END LOOP; END $$`, wide))
}

// everywhere runs sql for each of the tables, which it names %[1]s.
func (p *pair) everywhere(sql string) {
	p.t.Helper()
	p.app(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('%s', 't' || i); END LOOP; END $$`, wide, sql))
}

// stagesThere counts what there is of stages on the target, and the transactions that made it.
func (p *pair) stagesThere() (stages, transactions string) {
	p.t.Helper()
	const there = ` FROM pg_class WHERE relpersistence = 't' AND relname ~ '^(stage|image)_\d+$'`
	return p.one(p.target, "SELECT count(*)::text"+there), p.one(p.target, "SELECT count(DISTINCT xmin::text)::text"+there)
}

// A commit empties every temporary table that is ON COMMIT DELETE ROWS: stages made one by one, and
// passes after them, would cost the square of their number.
func TestManyStages(t *testing.T) {
	p := widePair(t)
	p.everywhere(`INSERT INTO %1$s VALUES (1, 1), (2, 2)`)
	var locks int
	_, err := p.passer.Exact(p.ctx, Options{InTarget: func(ctx context.Context, tx pgx.Tx, _ *pgx.Conn) error {
		return tx.QueryRow(ctx, "SELECT count(DISTINCT relation) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'").Scan(&locks)
	}})
	if err != nil {
		t.Fatal(err)
	}
	// A table, its key's index and its stage: as many as there must be room for (capacity.go).
	if locks > 3*wide+20 {
		t.Errorf("the pass over %d tables locks %d relations on the target", wide, locks)
	}
	if stages, transactions := p.stagesThere(); stages != strconv.Itoa(wide) || transactions != "1" {
		t.Errorf("%s stages were made in %s transactions", stages, transactions)
	}

	to := p.passer.to
	stages := slices.Collect(maps.Values(to.stages))
	if err := run(p.ctx, to.conn, "BEGIN; "+joined(stages, "INSERT INTO %s DEFAULT VALUES")+"COMMIT"); err != nil {
		t.Fatal(err)
	}
	emptied := 0
	for _, st := range stages {
		var n int
		if err := to.conn.QueryRow(p.ctx, "SELECT count(*) FROM "+st.name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			emptied++
		}
	}
	if emptied != emptiedStages {
		t.Errorf("a commit empties %d of %d stages", emptied, len(stages))
	}
	// What a pass left in its stages is not applied by the next one.
	p.everywhere(`UPDATE %1$s SET v = 3 WHERE id = 1`)
	p.everywhere(`DELETE FROM %1$s WHERE id = 2`)
	p.synced()
	p.everywhere(`INSERT INTO %1$s VALUES (4, 4)`)
	p.synced()
}

func joined(stages []*stage, format string) (sql string) {
	for _, st := range stages {
		sql += fmt.Sprintf(format, st.name) + ";"
	}
	return sql
}

// Each pass that truncated its stages would write dead rows to the target's catalog and make files for every
// table that changed; a stage whose dead rows are many is truncated.
func TestStagesAreEmptied(t *testing.T) {
	p := widePair(t)
	p.everywhere(`INSERT INTO %1$s VALUES (1, 1)`)
	p.exact()
	var st *stage
	for _, tbl := range p.passer.following() {
		if one := p.passer.to.stages[tbl.ID]; keyed(tbl) && !one.emptied {
			st = one
		}
	}
	if st == nil {
		t.Fatal("every stage is emptied by commits")
	}
	file := func() (n uint32) {
		t.Helper()
		if err := p.passer.to.conn.QueryRow(p.ctx, "SELECT pg_relation_filenode('"+st.name+"')").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := file()
	for i := range 5 {
		p.everywhere(fmt.Sprintf(`UPDATE %%1$s SET v = %d`, i))
		p.synced()
	}
	if file() != before {
		t.Error("a stage with a few rows got a new file")
	}
	p.everywhere(fmt.Sprintf(`UPDATE %%1$s SET v = repeat(''x'', %d)`, deletedBytes+1))
	p.synced()
	p.everywhere(`UPDATE %1$s SET v = 1`)
	p.synced()
	if file() == before {
		t.Errorf("a stage keeps over %d dead bytes", deletedBytes)
	}
	before = file()
	p.everywhere(fmt.Sprintf(`INSERT INTO %%1$s SELECT g, g FROM generate_series(2, %d) g`, deletedRows+2))
	p.synced()
	p.everywhere(`DELETE FROM %1$s WHERE id > 1`)
	p.synced()
	if file() == before {
		t.Errorf("a stage keeps over %d dead rows", deletedRows)
	}
}

// The stages that were used last stay, others are made again when they are needed; all of them where
// the session ended.
func TestStagesAreMadeAgain(t *testing.T) {
	p := widePair(t)
	p.everywhere(`INSERT INTO %1$s VALUES (1, 1)`)
	p.synced()
	p.app(`INSERT INTO t1 VALUES (2, 2); INSERT INTO t10 VALUES (2, 2)`)
	p.synced()
	if err := p.passer.to.shed(p.ctx, 2); err != nil {
		t.Fatal(err)
	}
	for _, tbl := range p.tables {
		if _, kept := p.passer.to.stages[tbl.ID]; kept != (tbl.Name.Name == "t1" || tbl.Name.Name == "t10") {
			t.Errorf("stage of %s: kept is %v", tbl.Name.Name, kept)
		}
	}
	if stages, _ := p.stagesThere(); stages != "2" {
		t.Errorf("%s stages are left on the target", stages)
	}
	p.everywhere(`UPDATE %1$s SET v = 3`)
	p.synced()
	p.everywhere(`UPDATE %1$s SET v = 4`)
	p.exec(p.target, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 pass%'`)
	p.synced()
}

// A pass that made a thousand stages behind its table locks would keep the application's TRUNCATE or
// ALTER TABLE waiting, and all who come after it.
func TestNoLocksWhileStagesAreMade(t *testing.T) {
	p := newPair(t, plainTable)
	passes := map[string]func(*Passer) error{
		"exact": func(passer *Passer) error {
			_, err := passer.Exact(p.ctx, Options{})
			return err
		},
		"piece": func(passer *Passer) error {
			_, _, _, err := passer.piece(p.ctx, p.tables[0], 10)
			return err
		},
		"freeze": func(passer *Passer) error {
			open, err := passer.Begin(p.ctx, Options{})
			if err != nil {
				return err
			}
			_, err = open.Run(p.ctx, Options{})
			return err
		},
	}
	for name, pass := range passes {
		p.app(`INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t`)
		in := p.connect(p.target)
		if err := run(p.ctx, in, "BEGIN; LOCK TABLE pg_catalog.pg_class IN SHARE MODE"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- pass(p.newPasser()) }()
		for p.one(p.target, `SELECT count(*)::text FROM pg_locks WHERE relation = 'pg_catalog.pg_class'::regclass AND NOT granted`) == "0" {
			if len(done) > 0 {
				t.Fatalf("%s: the pass made no stage: %v", name, <-done)
			}
		}
		if n := p.one(p.source, `SELECT count(*)::text FROM pg_locks WHERE relation = 't'::regclass`); n != "0" {
			t.Errorf("%s: %s locks on the table while its stage is made", name, n)
		}
		if err := run(p.ctx, in, "COMMIT"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p.equal()
	}
}

// Tables may be too many for stages ahead: the freeze has those of the tables with changes, and makes
// one that comes to them.
func TestFreezeOfManyTables(t *testing.T) {
	p := newPair(t, plainTable+`; CREATE TABLE other (id int PRIMARY KEY)`)
	following := slices.Clone(p.tables)
	for i := range maxStages { // under names of their own, which nobody writes to
		tbl := p.tables[0]
		tbl.ID = int32(1000 + i)
		following = append(following, tbl)
	}
	p.app(`INSERT INTO t VALUES (1)`)
	p.passer.SetTables(following)
	open, err := p.passer.Begin(p.ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.passer.to.stages); n != 1 {
		t.Errorf("%d stages were made for one table with changes", n)
	}
	p.app(`INSERT INTO other VALUES (1)`)
	if _, err := open.Run(p.ctx, Options{}); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// Begin has no time for hundreds of stages: it finds those that Stage made, and drops none.
func TestStagesAreMadeAhead(t *testing.T) {
	for _, n := range []int{maxStages - 100, maxStages + 100} {
		p := newPair(t, plainTable)
		following := slices.Clone(p.tables)
		for i := range n {
			tbl := p.tables[0]
			tbl.ID = int32(1000 + i)
			following = append(following, tbl)
		}
		p.app(`INSERT INTO t VALUES (1)`)
		p.passer.SetTables(following)
		if err := p.passer.Stage(p.ctx, Options{}); err != nil {
			t.Fatal(err)
		}
		if n > maxStages { // as if so many had changes
			if err := p.passer.to.makeStages(p.ctx, following, p.passer.from.version); err != nil {
				t.Fatal(err)
			}
		}
		made := maps.Clone(p.passer.to.stages)
		if len(made) != len(following) {
			t.Errorf("%d stages were made for %d tables", len(made), len(following))
		}
		if locks := p.one(p.source, `SELECT count(*)::text FROM pg_locks WHERE relation = 't'::regclass`); locks != "0" {
			t.Errorf("%s locks on the table are left", locks)
		}
		open, err := p.passer.Begin(p.ctx, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(made, p.passer.to.stages) {
			t.Errorf("of %d stages %d are there, some made anew", len(made), len(p.passer.to.stages))
		}
		if _, err := open.Run(p.ctx, Options{}); err != nil {
			t.Fatal(err)
		}
		p.equal()
	}
}
