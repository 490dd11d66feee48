package pass

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// equalKeys are two spellings of one key: equal by the key's operator, and not the same bytes.
var equalKeys = []struct{ typ, a, b string }{
	{"bpchar", "'a'", "'a  '"},
	{"numeric", "1.0", "1.00"},
	{"float8", "'0'", "'-0'"},
	{"float4", "'-0'", "'0'"},
	{"interval", "'24 hours'", "'1 day'"},
	{"interval", "'1 mon'", "'30 days'"},
	{"jsonb", `'{"a": 1, "b": [1.0]}'`, `'{"a": 1.00, "b": [1]}'`},
	{"numeric[]", "'{1.0,NULL}'", "'{1.00,NULL}'"},
	{"numrange", "'[1.0,2)'", "'[1.00,2.0)'"},
	{"price", "7.5", "7.50"},
	{"pair", "'(1,2.0)'::pair", "'(1,2.00)'::pair"},
	{"citext", "'a'", "'A'"},
	{"text COLLATE public.ci", "'a'", "'A'"},
}

// F38: a key that is spelled in another way is the same row: by an UPDATE, by DELETE and INSERT, to and fro between two
// passes, with the spellings in different pieces, and by the spelling that it did not have when it goes.
func TestF38EqualKeysOfOtherBytes(t *testing.T) {
	ddl := `CREATE EXTENSION citext; CREATE COLLATION public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE DOMAIN price AS numeric CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b numeric);`
	for i, k := range equalKeys {
		ddl += fmt.Sprintf("CREATE TABLE k%d (k %s PRIMARY KEY, v int);", i, k.typ)
	}
	p := newPair(t, ddl)
	spelled := make([]string, len(equalKeys))
	for n, step := range []struct {
		sql     string // %[1]d is the table, %[2]s and %[3]s the spellings
		respelt bool
		drain   bool
	}{
		{"INSERT INTO k%[1]d VALUES (%[2]s, 1)", true, false},
		{"UPDATE k%[1]d SET k = %[3]s WHERE k = %[2]s", true, false},
		{"BEGIN; DELETE FROM k%[1]d WHERE k = %[2]s; INSERT INTO k%[1]d VALUES (%[2]s, 2); COMMIT", true, false},
		{"UPDATE k%[1]d SET k = %[3]s; UPDATE k%[1]d SET k = %[2]s; UPDATE k%[1]d SET k = %[3]s, v = 3", true, false},
		{"UPDATE k%[1]d SET v = 4 WHERE k = %[2]s", false, false},
		{"UPDATE k%[1]d SET k = %[2]s; UPDATE k%[1]d SET v = 5 WHERE k = %[3]s; UPDATE k%[1]d SET k = %[3]s; UPDATE k%[1]d SET k = %[2]s", true, true},
		{"DELETE FROM k%[1]d WHERE k = %[3]s", true, false},
		{"INSERT INTO k%[1]d VALUES (%[2]s, 6); DELETE FROM k%[1]d WHERE k = %[3]s; INSERT INTO k%[1]d VALUES (%[3]s, 7)", true, true},
	} {
		for i, k := range equalKeys {
			// Each statement is a transaction of its own where pieces are to part them.
			for _, sql := range parts(fmt.Sprintf(step.sql, i, k.a, k.b), step.drain) {
				p.app(sql)
			}
			is := p.one(p.source, fmt.Sprintf("SELECT coalesce((SELECT format('%%s', k) FROM k%d WHERE k = %s AND k = %s), '')", i, k.a, k.b))
			if (is != spelled[i]) != step.respelt {
				t.Fatalf("step %d: the key %s of type %s is %q on the source and was %q", n, k.a, k.typ, is, spelled[i])
			}
			spelled[i] = is
		}
		if step.drain {
			if _, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 1, Workers: 1}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := p.passer.Exact(p.ctx, Options{Patience: 5 * time.Second, Prove: 100}); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		p.equal()
	}
}

// parts are a script's statements.
func parts(script string, apart bool) []string {
	if !apart {
		return []string{script}
	}
	return strings.Split(script, "; ")
}

// D6: under search_path = pg_catalog a bare = of a citext key is text's.
func TestD6F38KeyOperatorsOfTheIndex(t *testing.T) {
	p := newPair(t, `CREATE EXTENSION citext; CREATE TABLE c (k citext PRIMARY KEY, v int)`)
	p.app(`INSERT INTO c VALUES ('a', 1), ('b', 2)`)
	p.synced()
	p.app(`UPDATE c SET k = 'A' WHERE k = 'a'`)
	p.synced()
	p.app(`BEGIN; DELETE FROM c WHERE k = 'a'; INSERT INTO c VALUES ('a', 3); COMMIT`)
	p.synced()
	p.app(`BEGIN; DELETE FROM c WHERE k = 'a'; INSERT INTO c VALUES ('A', 4); COMMIT`)
	p.synced()
	p.app(`DELETE FROM c WHERE k = 'B'`)
	p.synced()
}

// S2: with a nondeterministic collation two keys of the delta are one key of the table.
func TestS2NondeterministicCollation(t *testing.T) {
	p := newPair(t, `CREATE COLLATION public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE c (k text COLLATE public.ci PRIMARY KEY, v int)`)
	p.app(`INSERT INTO c VALUES ('a', 1), ('b', 2)`)
	p.synced()
	p.app(`UPDATE c SET k = 'A' WHERE k = 'a'; UPDATE c SET k = 'a'  WHERE k = 'a'; UPDATE c SET k = 'A' WHERE k = 'a'`)
	p.synced()
}

// D21: values that are equal for the key's operator need not be the same.
func TestD21F38KeyColumnsAreSetToo(t *testing.T) {
	p := newPair(t, `CREATE TABLE n (k numeric PRIMARY KEY)`)
	p.app(`INSERT INTO n VALUES (1.0), (2)`)
	p.synced()
	p.app(`UPDATE n SET k = 1.00 WHERE k = 1`)
	p.synced()
}

// A composite key with a null field is not "IS NOT NULL", and its row is there all the same.
func TestF38CompositeKeyWithANullField(t *testing.T) {
	p := newPair(t, `CREATE TYPE pair AS (a int, b int); CREATE TABLE c (k pair PRIMARY KEY, v int)`)
	p.app(`INSERT INTO c VALUES ((1, 1), 1), ((1, NULL), 2), ((NULL, NULL), 3)`)
	p.synced()
	p.app(`UPDATE c SET v = v + 1; DELETE FROM c WHERE v = 2`)
	if _, err := p.passer.Exact(p.ctx, Options{Patience: 5 * time.Second, Prove: 100}); err != nil {
		t.Error(err)
	}
	p.equal()
}
