package histories_test

import "fmt"

// keyType is a type that keys have. lit gives the n-th value; look chooses between values that are
// equal and not identical, where the type has them.
type keyType struct {
	name, sql string
	lit       func(n, look int) string
}

func quoted(format, typ string) func(n, look int) string {
	return func(n, _ int) string { return fmt.Sprintf("'"+format+"'::%s", n, typ) }
}

// either chooses by look.
func either(typ string, formats ...string) func(n, look int) string {
	return func(n, look int) string { return fmt.Sprintf("'"+formats[look%len(formats)]+"'::%s", n, typ) }
}

var keyTypes = []keyType{
	{"int", "int", quoted("%d", "int")},
	{"bigint", "bigint", func(n, _ int) string { return fmt.Sprintf("%d::bigint", 3_000_000_000+n) }},
	{"smallint", "smallint", quoted("%d", "smallint")},
	{"text", "text", quoted(`k %d,"\{}`, "text")},
	{"varchar", "varchar(20)", quoted("v%d", "varchar(20)")},
	{"C text", `text COLLATE "C"`, quoted("c%d", "text")},
	{"bpchar", "char(8)", either("char(8)", "b%d", "b%d  ")},
	{"uuid", "uuid", func(n, _ int) string { return fmt.Sprintf("md5('%d')::uuid", n) }},
	{"numeric", "numeric", either("numeric", "%d", "%d.0", "%d.00")},
	{"citext", "citext", either("citext", "key%d", "KEY%d", "Key%d")},
	{"nondeterministic", "text COLLATE h.ci", either("text", "key%d", "KEY%d", "Key%d")},
	{"domain", "h.code", quoted("d%d", "h.code")},
	{"domain of numeric", "h.price", either("h.price", "%d", "%d.0")},
	{"interval", "interval", func(n, look int) string {
		return cond(look%2 == 0, fmt.Sprintf("'%d days'::interval", n), fmt.Sprintf("'%d hours'::interval", 24*n))
	}},
	{"float8", "float8", func(n, look int) string {
		return cond(n%50 == 0, cond(look%2 == 0, "'0'::float8", "'-0'::float8"), fmt.Sprintf("'%d.1'::float8", n))
	}},
	{"timestamptz", "timestamptz", func(n, _ int) string {
		return fmt.Sprintf("'2026-03-29 00:00+00'::timestamptz + interval '%d min'", 20*n)
	}},
	{"date", "date", func(n, _ int) string { return fmt.Sprintf("'0001-01-01 BC'::date + %d", n) }},
	{"bytea", "bytea", func(n, _ int) string { return fmt.Sprintf(`'\x00%04x'::bytea`, n) }},
	{"jsonb", "jsonb", either("jsonb", `{"a": %d}`, `{"a": %d.0}`)},
	{"inet", "inet", func(n, _ int) string { return fmt.Sprintf("'10.0.%d.%d'::inet", n/200, n%200) }},
	{"enum", "h.level", func(n, _ int) string { return fmt.Sprintf("'l%d'::h.level", n%24) }},
	{"array", "int[]", quoted("{%d,NULL}", "int[]")},
	{"text array", "text[]", quoted(`{"a %d",NULL,"NULL"}`, "text[]")},
	{"range", "int4range", quoted("[%[1]d,%[1]d]", "int4range")},
	{"row type", "h.pair", quoted(`(%d,"x ,")`, "h.pair")},
	{"varbit", "varbit", func(n, _ int) string { return fmt.Sprintf("%d::bit(12)::varbit", n) }},
	{"oid", "oid", quoted("%d", "oid")},
	{"timetz", "timetz", func(n, _ int) string { return fmt.Sprintf("'00:00+01'::timetz + interval '%d min'", n) }},
	{"name", "name", quoted("n%d", "name")},
	{"pg_lsn", "pg_lsn", quoted("0/%X", "pg_lsn")},
}

// shared is what the tables of every history stand on.
const shared = `
CREATE EXTENSION citext;
CREATE EXTENSION btree_gist;
CREATE SCHEMA h;
CREATE COLLATION h.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN h.code AS text CHECK (length(VALUE) < 20);
CREATE DOMAIN h.price AS numeric CHECK (VALUE > -1000000);
CREATE TYPE h.level AS ENUM ('l0','l1','l2','l3','l4','l5','l6','l7','l8','l9','l10','l11','l12','l13','l14','l15','l16','l17','l18','l19','l20','l21','l22','l23');
CREATE TYPE h.pair AS (a int, b text);
CREATE TABLE h.probe (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO h.probe VALUES (1, 0);
CREATE TABLE h.account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO h.account SELECT i, 1000 FROM generate_series(0, 9) i;
`

const (
	accounts     = 10
	startBalance = 1000
	listCount    = 6
	probeSQL     = "UPDATE h.probe SET n = n + 1"
)

// listKinds are the tables that hold the lists: (k int, v text).
var listKinds = map[string]struct{ setup, rule string }{
	"by key":      {"CREATE TABLE h.list (k int PRIMARY KEY, v text NOT NULL)", ""},
	"partitioned": {"CREATE TABLE h.list (k int PRIMARY KEY, v text NOT NULL) PARTITION BY LIST (k); CREATE TABLE h.list_0 PARTITION OF h.list FOR VALUES IN (0, 1); CREATE TABLE h.list_1 PARTITION OF h.list DEFAULT", ""},
	"whole rows":  {"CREATE TABLE h.list (k int, v text NOT NULL)", `identity = "full_row"`},
	"at freeze":   {"CREATE TABLE h.list (k int, v text NOT NULL)", `data = "at_freeze"`},
	"deferrable":  {"CREATE TABLE h.list (k int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text NOT NULL)", `identity = "full_row"`},
	"inherited":   {"CREATE TABLE h.listing (k int PRIMARY KEY, v text NOT NULL); CREATE TABLE h.list (PRIMARY KEY (k)) INHERITS (h.listing)", ""},
}
