package histories_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// kind makes tables of one shape: their definition, and statements that change them.
type kind struct {
	name string
	make func(g *gen, t *Table) shape
}

// shape is what the generator knows of one table besides its definition.
type shape struct {
	change func(g *gen) []Stmt  // one piece of a transaction
	events func(g *gen) []Event // what may happen to it once; it chooses one
}

// gen is one generator: everything random comes from it.
type gen struct {
	*rand.Rand
	merge bool // the source has MERGE
}

func (g *gen) pick(list ...string) string { return list[g.IntN(len(list))] }

// one makes statements of the same table out of texts.
func one(t *Table, sql ...string) []Stmt {
	list := make([]Stmt, len(sql))
	for i, s := range sql {
		list[i] = Stmt{Table: t.Name, SQL: s}
	}
	return list
}

// as says what the last of some statements completes.
func as(what string, list []Stmt) []Stmt {
	list[len(list)-1].As = what
	return list
}

func f(format string, args ...any) string { return fmt.Sprintf(format, args...) }

const keys = 40 // values of keys that writers meet at

var kinds = []kind{
	{"plain", plain},
	{"plain", plain},
	{"plain", plain},
	{"plain", plain},
	{"two columns", twoColumns},
	{"unique, not primary", uniqueOnly},
	{"identity", identity},
	{"whole rows", fullRow},
	{"whole rows, deferrable key", deferrableKey},
	{"append only", appendOnly},
	{"at freeze", atFreeze},
	{"range partitions", rangeTree},
	{"list and hash partitions", listTree},
	{"inheritance", inheritance},
	{"toast", toast},
	{"other unique", otherUnique},
	{"cascades", cascades},
	{"cascades", cascades},
	{"self reference", selfReference},
	{"triggers", triggers},
	{"unlogged serial", unlogged},
}

// plain has a key of any type, and perhaps a column that is gone, a view, an odd name.
func plain(g *gen, t *Table) shape {
	k := keyTypes[g.IntN(len(keyTypes))]
	t.Kind = "key of type " + k.name
	if g.IntN(5) == 0 {
		t.Name = `"Odd, ""` + t.Name + `"`
	}
	n := "h." + t.Name
	if g.IntN(3) == 0 {
		t.Setup = append(t.Setup, f("CREATE TABLE %s (gone text, v text, k %s PRIMARY KEY, n int DEFAULT 7)", n, k.sql), "ALTER TABLE "+n+" DROP COLUMN gone")
	} else {
		t.Setup = append(t.Setup, f("CREATE TABLE %s (k %s PRIMARY KEY, n int DEFAULT 7, v text)", n, k.sql))
	}
	t.fill(g, keyed(n, k))
	return shape{change: func(g *gen) []Stmt { return keyedChange(g, t, n, "k", k) }, events: func(g *gen) []Event { return commonEvents(g, t, n, "k") }}
}

// fill inserts some rows, or enough for several chunks.
func (t *Table) fill(g *gen, row func(i int) string) {
	into := row(-1)
	var rows []string
	for i := range keys / 2 {
		rows = append(rows, row(i))
	}
	t.Setup = append(t.Setup, into+" VALUES "+strings.Join(rows, ", ")+" ON CONFLICT DO NOTHING")
	_ = g
}

func keyed(n string, k keyType) func(i int) string {
	return func(i int) string {
		if i < 0 {
			return f("INSERT INTO %s (k, n, v)", n)
		}
		return f("(%s, %d, 'first')", k.lit(i, 0), i)
	}
}

// keyedChange is the whole art of changing rows by a key.
func keyedChange(g *gen, t *Table, n, col string, k keyType) []Stmt {
	a, b := g.IntN(keys), g.IntN(keys)
	la, lb, look := k.lit(a, g.IntN(3)), k.lit(b, g.IntN(3)), k.lit(a, g.IntN(3))
	v := g.IntN(1000)
	switch g.IntN(14) {
	case 0:
		return one(t, f("INSERT INTO %s (%s, n, v) VALUES (%s, %d, 'new') ON CONFLICT DO NOTHING", n, col, la, v))
	case 1, 2:
		return one(t, f("INSERT INTO %s AS x (%s, n, v) VALUES (%s, %d, 'up') ON CONFLICT (%s) DO UPDATE SET %s = excluded.%s, n = excluded.n, v = left(x.v || '+', 50)", n, col, la, v, col, col, col))
	case 3:
		return one(t, f("UPDATE %s SET n = %d, v = NULL WHERE %s = %s", n, v, col, la))
	case 4:
		return as("other key", one(t, f("UPDATE %s SET %s = %s WHERE %s = %s AND NOT EXISTS (SELECT FROM %s WHERE %s = %s)", n, col, lb, col, la, n, col, lb)))
	case 5:
		return one(t, f("UPDATE %s SET %s = %s WHERE %s = %s", n, col, look, col, la))
	case 6:
		return one(t, f("DELETE FROM %s WHERE %s = %s", n, col, la))
	case 7: // swap
		far := k.lit(keys+g.IntN(8), 0)
		return as("swap", one(t, f("UPDATE %s SET %s = %s WHERE %s = %s", n, col, far, col, la), f("UPDATE %s SET %s = %s WHERE %s = %s", n, col, la, col, lb), f("UPDATE %s SET %s = %s WHERE %s = %s", n, col, lb, col, far)))
	case 8:
		return one(t, f("DELETE FROM %s WHERE %s = %s", n, col, la), f("INSERT INTO %s (%s, n, v) VALUES (%s, %d, 'again') ON CONFLICT DO NOTHING", n, col, look, v))
	case 9:
		return one(t, f("WITH d AS (DELETE FROM %s WHERE %s = %s RETURNING n, v) INSERT INTO %s (%s, n, v) SELECT %s, n, v FROM d ON CONFLICT DO NOTHING", n, col, la, n, col, lb))
	case 10:
		if !g.merge {
			return one(t, f("UPDATE %s SET n = n + 1 WHERE n %% 7 = %d", n, v%7))
		}
		return one(t, f("MERGE INTO %s t USING (VALUES (%s, %d)) AS s (k, n) ON t.%s = s.k WHEN MATCHED AND s.n %% 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.n WHEN NOT MATCHED THEN INSERT (%s, n, v) VALUES (s.k, s.n, 'merged')", n, la, v, col, col))
	case 11:
		s := one(t, f("DELETE FROM %s WHERE %s = %s", n, col, la), "")
		s[1] = Stmt{Table: t.Name, SQL: f("COPY %s (%s, n, v) FROM STDIN", n, col), Copy: f("@%s\t%d\tcopied\n", la, v)}
		return s
	case 12:
		if g.IntN(6) > 0 {
			return one(t, f("UPDATE %s SET n = n + 1, v = left(v || 'y', 20) WHERE n %% 5 = %d", n, v%5))
		}
		return one(t, "TRUNCATE "+n+" CASCADE", f("INSERT INTO %s (%s, n, v) VALUES (%s, %d, 'after')", n, col, la, v))
	}
	return one(t, f("UPDATE %s SET n = n + 1 WHERE %s IN (%s, %s)", n, col, la, lb))
}

func twoColumns(g *gen, t *Table) shape {
	k, l := keyTypes[g.IntN(len(keyTypes))], keyTypes[g.IntN(len(keyTypes))]
	t.Kind = "key of " + k.name + ", " + l.name
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (v text, k %s, l %s, n int, PRIMARY KEY (l, k))", n, k.sql, l.sql))
	t.fill(g, func(i int) string {
		return cond(i < 0, f("INSERT INTO %s (k, l, n)", n), f("(%s, %s, %d)", k.lit(max(i, 0)%7, 0), l.lit(max(i, 0), 0), i))
	})
	return shape{change: func(g *gen) []Stmt {
		a, b, v := k.lit(g.IntN(7), g.IntN(3)), l.lit(g.IntN(keys), g.IntN(3)), g.IntN(1000)
		switch g.IntN(5) {
		case 0:
			return one(t, f("INSERT INTO %s (k, l, n) VALUES (%s, %s, %d) ON CONFLICT (k, l) DO UPDATE SET k = excluded.k, l = excluded.l, n = excluded.n", n, a, b, v))
		case 1:
			return one(t, f("DELETE FROM %s WHERE l = %s", n, b))
		case 2:
			return one(t, f("UPDATE %s x SET k = %s WHERE l = %s AND NOT EXISTS (SELECT FROM %s WHERE k = %s AND l = x.l)", n, a, b, n, a))
		case 3:
			return one(t, f("INSERT INTO %s (k, l, n) VALUES (%s, %s, %d) ON CONFLICT DO NOTHING", n, a, b, v))
		}
		return one(t, f("UPDATE %s SET n = %d WHERE k = %s", n, v, a))
	}, events: func(g *gen) []Event { return commonEvents(g, t, n, "k") }}
}

func uniqueOnly(g *gen, t *Table) shape {
	k := keyTypes[g.IntN(len(keyTypes))]
	t.Kind = "unique " + k.name + ", no primary key"
	n := "h." + t.Name
	t.Setup = append(t.Setup, f("CREATE TABLE %s (n int, k %s NOT NULL, v text)", n, k.sql), f("CREATE UNIQUE INDEX ON %s (k)", n))
	if g.IntN(2) == 0 {
		t.Rule = `key = ["k"]`
	}
	t.fill(g, keyed(n, k))
	return shape{change: func(g *gen) []Stmt { return keyedChange(g, t, n, "k", k) }, events: func(g *gen) []Event { return commonEvents(g, t, n, "k") }}
}

func identity(g *gen, t *Table) shape {
	n := "h." + t.Name
	how := g.pick("ALWAYS", "BY DEFAULT")
	t.Kind = "identity " + how + ", generated column"
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id bigint GENERATED %s AS IDENTITY PRIMARY KEY, n int NOT NULL UNIQUE, twice int GENERATED ALWAYS AS (n * 2) STORED, v text)", n, how),
		f("INSERT INTO %s (n) SELECT g FROM generate_series(0, %d) g", n, cond(g.IntN(3) == 0, 3000, 60)))
	return shape{change: func(g *gen) []Stmt {
		a, b := g.IntN(120), g.IntN(120)
		switch g.IntN(5) {
		case 0:
			return one(t, f("INSERT INTO %s (n, v) VALUES (%d, 'i') ON CONFLICT (n) DO UPDATE SET v = 'u'", n, a))
		case 1: // the unique values change hands
			return as("swap", one(t, f("UPDATE %s SET n = -1 - n WHERE n IN (%d, %d)", n, a, b), f("UPDATE %s SET n = CASE n WHEN %d THEN %d ELSE %d END WHERE n IN (%d, %d)", n, -1-a, b, a, -1-a, -1-b)))
		case 2:
			return one(t, f("DELETE FROM %s WHERE n = %d", n, a), f("INSERT INTO %s (n, v) VALUES (%d, 'taken over') ON CONFLICT DO NOTHING", n, a))
		case 3:
			return one(t, f("UPDATE %s SET n = n + 10000 WHERE n = %d", n, a))
		}
		return one(t, f("UPDATE %s SET v = 'v%d' WHERE id = %d", n, b, a))
	}, events: func(g *gen) []Event { return commonEvents(g, t, n, "id") }}
}

func fullRow(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Rule = `identity = "full_row"`
	large := g.IntN(3) == 0 // for several chunks: a tenth of its rows change
	t.Setup = append(t.Setup, f("CREATE TABLE %s (a int, b text, j json, x float8)", n), f("INSERT INTO %s SELECT g %% %d, 'b', '{\"a\": 1}', g / 3.0 FROM generate_series(1, %d) g", n, cond(large, 90, 9), cond(large, 2000, 50)))
	return shape{change: func(g *gen) []Stmt {
		a := g.IntN(9)
		switch g.IntN(7) {
		case 0, 1:
			return one(t, f("INSERT INTO %s SELECT %d, 'b', %s, NULL FROM generate_series(1, %d)", n, a, g.pick("NULL", `'{"a": 1}'`, `'{"a":1}'`), 1+g.IntN(3)))
		case 2:
			return one(t, f("DELETE FROM %s WHERE ctid IN (SELECT ctid FROM %s WHERE a = %d LIMIT 2)", n, n, a))
		case 3:
			return one(t, f("UPDATE %s SET b = b || 'u' WHERE a = %d AND length(b) < 4", n, a))
		case 4:
			return one(t, f("UPDATE %s SET x = %s WHERE a = %d", n, g.pick("'-0'", "0", "'NaN'", "NULL", "x"), a))
		case 5:
			return one(t, f("UPDATE %s SET j = %s WHERE ctid = (SELECT max(ctid) FROM %s WHERE a = %d)", n, g.pick("NULL", `'{"a": 1}'`, `'{"a":1}'`), n, a))
		}
		return cond(g.IntN(4) == 0, one(t, "TRUNCATE "+n, f("INSERT INTO %s VALUES (%d, 'after')", n, a)), one(t, f("UPDATE %s SET a = %d WHERE a = %d", n, (a+1)%9, a)))
	}, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func deferrableKey(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Rule = `identity = "full_row"`
	t.Setup = append(t.Setup, f("CREATE TABLE %s (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)", n), f("INSERT INTO %s SELECT g, 'v' FROM generate_series(1, 40) g", n))
	return shape{change: func(g *gen) []Stmt {
		a, b := 1+g.IntN(50), 1+g.IntN(50)
		switch g.IntN(4) {
		case 0:
			return one(t, f("UPDATE %s SET id = CASE id WHEN %d THEN %d ELSE %d END WHERE id IN (%d, %d)", n, a, b, a, a, b))
		case 1:
			return one(t, f("DELETE FROM %s WHERE id = %d", n, a))
		case 2:
			return one(t, f("INSERT INTO %s SELECT %d, 'i' WHERE NOT EXISTS (SELECT FROM %s WHERE id = %d)", n, a, n, a))
		}
		return one(t, f("UPDATE %s SET v = 'v%d' WHERE id = %d", n, b, a))
	}, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func appendOnly(g *gen, t *Table) shape {
	n := "h." + t.Name
	t.Rule = `identity = "append_only"`
	t.Setup = append(t.Setup, f("CREATE TABLE %s (at timestamptz NOT NULL DEFAULT now(), n int, x xml)", n), f("INSERT INTO %s (n) SELECT g FROM generate_series(1, %d) g", n, cond(g.IntN(3) == 0, 4000, 50)))
	return shape{change: func(g *gen) []Stmt {
		return one(t, f("INSERT INTO %s (n, x) SELECT g, %s FROM generate_series(1, %d) g", n, g.pick("NULL", "'<a/>'"), 1+g.IntN(4)))
	}, events: func(g *gen) []Event { return quietEvents(g, t, n) }}
}

func atFreeze(g *gen, t *Table) shape {
	n := "h." + t.Name
	if g.IntN(2) == 0 {
		t.Rule = `data = "at_freeze"`
	}
	t.Setup = append(t.Setup, f("CREATE TABLE %s (a int, v text)", n), f("INSERT INTO %s SELECT g, 'v' FROM generate_series(1, 40) g", n))
	return shape{change: func(g *gen) []Stmt {
		a := g.IntN(40)
		switch g.IntN(4) {
		case 0:
			return one(t, f("INSERT INTO %s VALUES (%d, 'i')", n, a))
		case 1:
			return one(t, f("DELETE FROM %s WHERE a = %d", n, a))
		case 2:
			return cond(g.IntN(4) == 0, one(t, "TRUNCATE "+n), one(t, f("INSERT INTO %s SELECT a, 'twice' FROM %s WHERE a = %d LIMIT 2", n, n, a)))
		}
		return one(t, f("UPDATE %s SET v = left(v || 'u', 9) WHERE a = %d", n, a))
	}, events: func(g *gen) []Event { return nil }}
}
