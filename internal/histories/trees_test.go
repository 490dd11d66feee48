package histories_test

import "strings"

// rangeTree has two levels, a default, and a partition whose columns stand in another order.
func rangeTree(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Setup = append(t.Setup,
		f("CREATE TABLE %s (id int, day date, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day)", n),
		f("CREATE TABLE %s_a PARTITION OF %s FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')", n, n),
		f("CREATE TABLE %s_b (v text, old int, id int NOT NULL, day date NOT NULL)", n), f("ALTER TABLE %s_b DROP COLUMN old", n),
		f("ALTER TABLE %s ATTACH PARTITION %s_b FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')", n, n),
		f("CREATE TABLE %s_c PARTITION OF %s FOR VALUES FROM ('2026-03-01') TO ('2026-04-01') PARTITION BY LIST (id)", n, n),
		f("CREATE TABLE %s_c1 PARTITION OF %s_c FOR VALUES IN (1, 2, 3, 4, 5, 6)", n, n), f("CREATE TABLE %s_c2 PARTITION OF %s_c DEFAULT", n, n),
		f("INSERT INTO %s SELECT g, date '2026-01-01' + g %% 85, 'first' FROM generate_series(1, %d) g", n, cond(g.IntN(3) == 0, 3000, 80)))
	day := func(g *gen) string { return f("date '2026-01-01' + %d", g.IntN(85)) }
	return shape{change: func(g *gen) []Stmt {
		id := 1 + g.IntN(80)
		switch g.IntN(8) {
		case 0, 1:
			return one(t, f("INSERT INTO %s AS x VALUES (%d, %s, 'i') ON CONFLICT (day, id) DO UPDATE SET v = left(x.v || 'u', 20)", n, id, day(g)))
		case 2:
			return one(t, f("UPDATE %s SET day = %s WHERE id = %d", n, day(g), id))
		case 3:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, id))
		case 4:
			return one(t, f("UPDATE %s_%s SET v = 'leaf' WHERE id %% 10 = %d", n, g.pick("a", "b", "c", "c1", "c2"), id%10))
		case 5:
			return one(t, f("INSERT INTO %s_b (id, day, v) VALUES (%d, '2026-02-0%d', 'direct') ON CONFLICT DO NOTHING", n, id, 1+g.IntN(9)))
		case 6:
			if g.IntN(4) == 0 {
				return one(t, f("TRUNCATE %s%s", n, g.pick("", "_a", "_b", "_c", "_c1")))
			}
			return one(t, f("DELETE FROM %s_c2 WHERE id %% 9 = %d", n, id%9))
		}
		return one(t, f("UPDATE %s SET id = id + 100 WHERE id = %d", n, id))
	}, events: func(g *gen) []Event {
		list := treeEvents(g, t, n)
		return list[g.IntN(len(list)):][:1]
	}}
}

// treeEvents are changes of rangeTree's partitions.
func treeEvents(g *gen, t *Table, n string) []Event {
	d := f("date '2026-05-01' + %d", g.IntN(20))
	detached := event(t, "detach", f("ALTER TABLE %s DETACH PARTITION %s_a", n, n), f("UPDATE %s_a SET v = 'detached' WHERE id %% 2 = 0", n))
	detached.Later = []string{f("UPDATE %s_a SET v = 'meanwhile' WHERE id %% 3 = 0", n), f("ALTER TABLE %s ATTACH PARTITION %s_a FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')", n, n)}
	return []Event{
		event(t, "new partition", f("CREATE TABLE %s_d PARTITION OF %s FOR VALUES FROM ('2026-05-01') TO ('2026-06-01')", n, n), f("INSERT INTO %s VALUES (1, %s, 'new partition')", n, d)),
		event(t, "attach", f("CREATE TABLE %s_e (LIKE %s INCLUDING ALL)", n, n), f("INSERT INTO %s_e SELECT g, %s, 'before' FROM generate_series(1, 9) g", n, d), f("ALTER TABLE %s ATTACH PARTITION %s_e FOR VALUES FROM ('2026-05-01') TO ('2026-06-01')", n, n)),
		event(t, "detach and attach", f("ALTER TABLE %s DETACH PARTITION %s_a", n, n), f("UPDATE %s_a SET v = 'meanwhile' WHERE id %% 2 = 0", n), f("ALTER TABLE %s ATTACH PARTITION %s_a FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')", n, n)),
		event(t, "add column", f("ALTER TABLE %s ADD COLUMN extra int DEFAULT 5", n)),
		detached,
		event(t, "drop partition", f("DROP TABLE %s_a", n)),
	}
}

// schemaEvents are changes beside a history's tables, in the same schema.
func schemaEvents() []Event {
	extra, sequence, level, account, routine := &Table{Name: "extra"}, &Table{Name: "extra_seq"}, &Table{Name: "level"}, &Table{Name: "account"}, &Table{Name: routineName}
	table := event(extra, "create table", "CREATE TABLE h.extra (id int PRIMARY KEY, v text)", "INSERT INTO h.extra SELECT g, 'new table' FROM generate_series(1, 50) g")
	later := func(e Event, kind string, sql ...string) Event {
		e.Kind, e.Later = e.Kind+", "+kind, sql
		return e
	}
	number := event(sequence, "create sequence", "CREATE SEQUENCE h.extra_seq", "SELECT nextval('h.extra_seq') FROM generate_series(1, 7)")
	code := event(routine, "create function and view", "CREATE FUNCTION h.extra_code() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE VIEW h.extra_view AS SELECT h.extra_code() AS n")
	index := event(account, "create index and check", "CREATE INDEX extra_index ON h.account (balance)", "ALTER TABLE h.account ADD CONSTRAINT extra_check CHECK (id >= 0)")
	return []Event{
		table, later(table, "write it later", "UPDATE h.extra SET v = 'last'"), later(table, "drop it later", "DROP TABLE h.extra"),
		number, later(number, "drop it later", "DROP SEQUENCE h.extra_seq"),
		event(level, "enum value", "ALTER TYPE h.level ADD VALUE 'more'"),
		later(code, "replace them later", "CREATE OR REPLACE FUNCTION h.extra_code() RETURNS int LANGUAGE sql AS 'SELECT 2'", "CREATE OR REPLACE VIEW h.extra_view AS SELECT h.extra_code() AS n, 2 AS more"),
		later(index, "drop them later", "DROP INDEX h.extra_index", "ALTER TABLE h.account DROP CONSTRAINT extra_check"), index,
	}
}

func listTree(g *gen, t *Table) shape {
	n := "h." + t.Name
	k := keyTypes[[]int{0, 3, 7, 8, 11}[g.IntN(5)]]
	t.Kind = "hash partitions of " + k.name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (k %s PRIMARY KEY, n int, v text) PARTITION BY HASH (k)", n, k.sql))
	for i := range 3 {
		t.Setup = append(t.Setup, f("CREATE TABLE %s_%d PARTITION OF %s FOR VALUES WITH (MODULUS 3, REMAINDER %d)", n, i, n, i))
	}
	t.fill(g, keyed(n, k))
	return shape{change: func(g *gen) []Stmt {
		if g.IntN(12) == 0 {
			return one(t, f("TRUNCATE %s_%d", n, g.IntN(3)))
		}
		return keyedChange(g, t, n, "k", k)
	}, events: func(g *gen) []Event { return commonEvents(g, t, n+"_1", "k") }}
}

func inheritance(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, v text)", n), f("CREATE TABLE %s_kid (more int, PRIMARY KEY (id)) INHERITS (%s)", n, n),
		f("INSERT INTO %s SELECT g, 'parent' FROM generate_series(1, 30) g", n), f("INSERT INTO %s_kid SELECT g, 'kid', g FROM generate_series(31, 60) g", n))
	return shape{change: func(g *gen) []Stmt {
		id := 1 + g.IntN(70)
		switch g.IntN(6) {
		case 0:
			return one(t, f("UPDATE %s SET v = left(v || 'u', 20) WHERE id = %d", n, id))
		case 1:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, id))
		case 2:
			return one(t, f("INSERT INTO %s VALUES (%d, 'i') ON CONFLICT (id) DO UPDATE SET v = 'c'", n, id))
		case 3:
			return one(t, f("INSERT INTO %s_kid VALUES (%d, 'k', 1) ON CONFLICT (id) DO NOTHING", n, id))
		case 4:
			return one(t, f("UPDATE ONLY %s SET id = id + 100 WHERE id = %d", n, id))
		}
		return cond(g.IntN(4) == 0, one(t, "TRUNCATE "+g.pick("ONLY "+n, n+"_kid", n)), one(t, f("UPDATE %s_kid SET more = more + 1 WHERE id %% 5 = %d", n, id%5)))
	}, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func toast(g *gen, t *Table) shape {
	n := "h." + t.Name
	big := func(seed int) string {
		return f("(SELECT string_agg(md5((%d + g)::text), '') FROM generate_series(1, %d) g)", seed, 100+g.IntN(400))
	}
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, n int, big text, bin bytea)", n),
		f("INSERT INTO %s SELECT i, i, (SELECT string_agg(md5((i + g)::text), '') FROM generate_series(1, 200) g), decode(repeat(md5(i::text), 150), 'hex') FROM generate_series(1, 30) i", n))
	return shape{change: func(g *gen) []Stmt {
		id := 1 + g.IntN(40)
		switch g.IntN(5) {
		case 0:
			return one(t, f("INSERT INTO %s VALUES (%d, 1, %s) ON CONFLICT (id) DO UPDATE SET big = excluded.big", n, id, big(id)))
		case 1:
			return one(t, f("UPDATE %s SET big = %s WHERE id = %d", n, big(g.IntN(1000)), id))
		case 2:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, id))
		case 3:
			return one(t, f("UPDATE %s SET id = id + 1000 WHERE id = %d", n, id))
		}
		return one(t, f("UPDATE %s SET n = n + 1 WHERE id %% 5 = %d", n, id%5)) // the large value stays where it is
	}, events: func(g *gen) []Event { return commonEvents(g, t, n, "id") }}
}

func otherUnique(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, n int UNIQUE, v text, r int4range, EXCLUDE USING gist (r WITH &&))", n), f("CREATE UNIQUE INDEX ON %s (lower(v)) WHERE id > 10", n),
		f("INSERT INTO %s SELECT g, g, 'v' || g, int4range(g * 10, g * 10 + 9) FROM generate_series(1, 30) g", n))
	return shape{change: func(g *gen) []Stmt {
		a, b := 1+g.IntN(40), 1+g.IntN(40)
		switch g.IntN(7) {
		case 0, 1:
			return one(t, f("UPDATE %s SET n = -id WHERE id IN (%d, %d)", n, a, b), f("UPDATE %s SET n = %d WHERE id = %d", n, b, a), f("UPDATE %s SET n = %d WHERE id = %d", n, a, b))
		case 2:
			return one(t, f("UPDATE %s SET r = NULL WHERE id IN (%d, %d)", n, a, b), f("UPDATE %s SET r = int4range(%d, %d) WHERE id = %d", n, b*10, b*10+9, a), f("UPDATE %s SET r = int4range(%d, %d) WHERE id = %d", n, a*10, a*10+9, b))
		case 3:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a), f("INSERT INTO %s VALUES (%d, %d, 'v%d', int4range(%d, %d)) ON CONFLICT DO NOTHING", n, b, a, a, a*10, a*10+9))
		case 4:
			return one(t, f("UPDATE %s SET v = 'w%d' WHERE id = %d", n, b, a))
		case 5: // a chain of moves
			return one(t, f("DELETE FROM %s WHERE n = %d", n, 30+a), f("UPDATE %s SET n = n + 1000", n), f("UPDATE %s SET n = n - 999", n))
		}
		return one(t, f("UPDATE %s SET id = id + 100 WHERE id = %d", n, a))
	}, events: func(g *gen) []Event { return commonEvents(g, t, n, "id") }}
}

func cascades(g *gen, t *Table) shape {
	n := "h." + t.Name
	how := g.pick("ON DELETE CASCADE ON UPDATE CASCADE", "ON DELETE SET NULL ON UPDATE CASCADE", "ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED")
	t.Kind = "parent and child, " + how
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, v text)", n), f("CREATE TABLE %s_kid (no int PRIMARY KEY, parent int REFERENCES %s %s, v text)", n, n, how),
		f("INSERT INTO %s SELECT g, 'p' FROM generate_series(1, 30) g", n), f("INSERT INTO %s_kid SELECT g, 1 + g %% 30, 'k' FROM generate_series(1, 60) g", n))
	return shape{change: func(g *gen) []Stmt {
		a, b := 1+g.IntN(40), 1+g.IntN(40)
		switch g.IntN(7) {
		case 0:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a))
		case 1:
			return one(t, f("UPDATE %s SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM %s WHERE id = %d)", n, b, a, n, b))
		case 2:
			return one(t, f("INSERT INTO %s VALUES (%d, 'i') ON CONFLICT (id) DO UPDATE SET v = 'c'", n, a), f("INSERT INTO %s_kid VALUES (%d, %d) ON CONFLICT (no) DO UPDATE SET parent = excluded.parent", n, 100+b, a))
		case 3:
			return one(t, f("UPDATE %s_kid SET v = left(v || 'u', 9) WHERE no %% 7 = %d", n, a%7))
		case 4:
			return one(t, f("DELETE FROM %s_kid WHERE no = %d", n, a))
		case 5:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a), f("INSERT INTO %s VALUES (%d, 'back')", n, a), f("INSERT INTO %s_kid SELECT %d, %d, 'back' WHERE NOT EXISTS (SELECT FROM %s_kid WHERE no = %d)", n, 200+b, a, n, 200+b))
		}
		return cond(g.IntN(5) == 0, one(t, f("TRUNCATE %s CASCADE", n)), one(t, f("UPDATE %s_kid SET parent = NULL WHERE no = %d", n, b)))
	}, events: func(g *gen) []Event { return commonEvents(g, t, n+"_kid", "no") }}
}

func selfReference(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, boss int REFERENCES %s ON DELETE SET NULL ON UPDATE CASCADE, v text)", n, n), f("INSERT INTO %s SELECT g, nullif(g / 2, 0) FROM generate_series(1, 40) g", n))
	return shape{change: func(g *gen) []Stmt {
		a, b := 1+g.IntN(50), 1+g.IntN(50)
		switch g.IntN(4) {
		case 0:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a))
		case 1:
			return one(t, f("UPDATE %s SET id = id + 1000 WHERE id = %d", n, a))
		case 2:
			return one(t, f("INSERT INTO %s VALUES (%d, NULL, 'i') ON CONFLICT (id) DO UPDATE SET v = 'c'", n, a))
		}
		return one(t, f("UPDATE %s SET boss = (SELECT id FROM %s WHERE id = %d) WHERE id = %d", n, n, b, a))
	}, events: func(g *gen) []Event { return commonEvents(g, t, n, "id") }}
}

// triggers change rows on their way, write to another table, and fire in any role.
func triggers(g *gen, t *Table) shape {
	n := "h." + t.Name
	mode := g.pick("", "ALWAYS", "REPLICA")
	t.Kind = "triggers " + mode
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY, n int, v text)", n), f("CREATE TABLE %s_log (no bigserial PRIMARY KEY, what text)", n),
		f("CREATE FUNCTION h.%s_before() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := NEW.n + 1; NEW.v := left(NEW.v || ''!'', 30); RETURN NEW; END'", t.Name),
		f("CREATE FUNCTION h.%s_after() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO %s_log (what) VALUES (TG_OP); RETURN NULL; END'", t.Name, n),
		f("INSERT INTO %s SELECT g, g, 'v' FROM generate_series(1, 40) g", n),
		f("CREATE TRIGGER zz_before BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION h.%s_before()", n, t.Name),
		f("CREATE TRIGGER aa_after AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION h.%s_after()", n, t.Name))
	if mode != "" {
		t.Setup = append(t.Setup, f("ALTER TABLE %s ENABLE %s TRIGGER zz_before", n, mode), f("ALTER TABLE %s ENABLE %s TRIGGER aa_after", n, mode))
	}
	k := keyType{"int", "int", quoted("%d", "int")}
	return shape{change: func(g *gen) []Stmt { return keyedChange(g, t, n, "id", k) }, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func unlogged(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE UNLOGGED TABLE %s (id serial PRIMARY KEY, v text)", n), f("INSERT INTO %s (v) SELECT 'v' FROM generate_series(1, 40)", n))
	return shape{change: func(g *gen) []Stmt {
		a := g.IntN(60)
		switch g.IntN(3) {
		case 0:
			return one(t, f("INSERT INTO %s (v) SELECT 'i' FROM generate_series(1, %d)", n, 1+g.IntN(3)))
		case 1:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a))
		}
		return one(t, f("UPDATE %s SET v = left(v || 'u', 9) WHERE id %% 10 = %d", n, a%10))
	}, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func event(t *Table, kind string, sql ...string) Event {
	return Event{Table: t.Name, Kind: kind, SQL: sql}
}

// quietEvents change no shape: they rewrite, or hide writes from triggers.
func quietEvents(g *gen, t *Table, n string) []Event {
	list := []Event{
		event(t, "set unlogged", f("ALTER TABLE %s SET UNLOGGED", n), f("ALTER TABLE %s SET LOGGED", n)),
		event(t, "vacuum full", "VACUUM FULL "+n),
		event(t, "disable trigger", f("ALTER TABLE %s DISABLE TRIGGER ALL", n), f("DELETE FROM %s WHERE ctid = (SELECT min(ctid) FROM ONLY %s)", n, n), f("ALTER TABLE %s ENABLE TRIGGER ALL", n)),
		event(t, "rewrite", f("ALTER TABLE %s ADD COLUMN w int", n), f("ALTER TABLE %s DROP COLUMN w", n)),
	}
	list[1].Alone = true
	if strings.Contains(t.Kind, "unlogged") || strings.Contains(t.Kind, "parent and child") {
		list = list[1:]
	}
	if strings.Contains(t.Kind, "triggers ") { // ENABLE TRIGGER ALL would change the mode of the application's own
		list = list[:2]
	}
	return []Event{list[g.IntN(min(len(list), 3))]}
}

// renames are events after which our triggers' functions ask for a column that is not there, until it is undone.
var renames = []string{renameColumn, renameKey}

const renameColumn, renameKey = "rename column", "rename key"

// commonEvents are changes of a table with a key.
func commonEvents(g *gen, t *Table, n, key string) []Event {
	v := cond(strings.Contains(t.Kind, "parent and child") || t.Kind == "self reference", "v", cond(t.Kind == "toast", "big", "v"))
	rename := event(t, renameColumn, f("ALTER TABLE %s RENAME COLUMN %s TO renamed", n, v))
	rename.Undo = []string{f("ALTER TABLE %s RENAME COLUMN renamed TO %s", n, v)}
	rekey := event(t, renameKey, f("ALTER TABLE %s RENAME COLUMN %s TO renamed", n, key))
	rekey.Undo = []string{f("ALTER TABLE %s RENAME COLUMN renamed TO %s", n, key)}
	if strings.Contains(t.Kind, "hash partitions") { // of a partition: its columns are the root's
		return quietEvents(g, t, n)
	}
	list := []Event{
		event(t, "add column", f("ALTER TABLE %s ADD COLUMN extra int", n)),
		event(t, "add column, constant", f("ALTER TABLE %s ADD COLUMN extra text NOT NULL DEFAULT 'it''s'", n)),
		event(t, "add column, volatile", f("ALTER TABLE %s ADD COLUMN extra float8 DEFAULT random()", n)),
		event(t, "set default", f("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT 'd'", n, v)),
		event(t, "rewrite rows", f("ALTER TABLE %s ALTER COLUMN %s TYPE varchar USING left(%s, 2) || 'R'", n, v, v), f("ALTER TABLE %s ALTER COLUMN %s TYPE text", n, v)),
		event(t, "change type", f("ALTER TABLE %s ALTER COLUMN %s TYPE varchar USING left(%s, 3)", n, v, v)),
		rename, rekey,
	}
	if g.IntN(2) == 0 {
		return quietEvents(g, t, n)
	}
	return []Event{list[g.IntN(len(list))]}
}
