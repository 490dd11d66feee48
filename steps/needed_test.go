package steps

import "testing"

// newNeeds are tables that need something else that is new, made one after the other in one run.
var newNeeds = []stage{
	{"F46 a composite type alone", `CREATE TYPE shop.pair AS (a int, b text); CREATE VIEW shop.names AS SELECT id, name FROM shop.customer`, `type "shop"."pair" is new`},
	{"F41 a table of composite types", `CREATE TYPE shop.deep AS (p shop.pair, n int[]); CREATE TABLE shop.paired (id int PRIMARY KEY, p shop.pair, d shop.deep[]);
		INSERT INTO shop.paired VALUES (1, (1, 'x'), ARRAY[((2, 'y'), '{3,4}')::shop.deep]), (2, NULL, NULL)`, `"shop"."paired" is new`},
	{"F41 of enums, domains and ranges", `CREATE TYPE shop.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN shop.feeling AS shop.mood DEFAULT 'ok' CHECK (VALUE <> 'sad'); CREATE TYPE shop.span AS RANGE (subtype = numeric);
		CREATE TABLE shop.felt (id int PRIMARY KEY, f shop.feeling, m shop.mood[], s shop.span DEFAULT '[1,2)'); INSERT INTO shop.felt VALUES (1, 'ok', '{sad,ok}', '[3,4]'); INSERT INTO shop.felt (id) VALUES (2)`, `"shop"."felt" is new`},
	{"F41 of a base type", `CREATE TYPE shop.ident; CREATE FUNCTION shop.ident_in(cstring) RETURNS shop.ident LANGUAGE internal IMMUTABLE STRICT AS 'int4in'; CREATE FUNCTION shop.ident_out(shop.ident) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
		CREATE TYPE shop.ident (INPUT = shop.ident_in, OUTPUT = shop.ident_out, LIKE = int4); CREATE TABLE shop.idented (id int PRIMARY KEY, v shop.ident); INSERT INTO shop.idented VALUES (1, '7')`, `"shop"."idented" is new`},
	{"F41 with functions in default, generated column, check and index", `CREATE SEQUENCE shop.numbers; CREATE FUNCTION shop.next() RETURNS int LANGUAGE sql AS 'SELECT nextval(''shop.numbers'')::int';
		CREATE FUNCTION shop.twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'; CREATE FUNCTION shop.low(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 < 1000; END';
		CREATE TABLE shop.made (id int PRIMARY KEY DEFAULT shop.next(), n int CHECK (shop.low(n)), g int GENERATED ALWAYS AS (shop.twice(n)) STORED); CREATE INDEX made_twice ON shop.made (shop.twice(n));
		INSERT INTO shop.made (n) VALUES (1), (2)`, `"shop"."made" is new`},
	{"F41 with operator classes, of their own families", `CREATE FUNCTION shop.cmp(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT CASE WHEN $1 = $2 THEN 0 WHEN $1 > $2 THEN 1 ELSE -1 END';
		CREATE FUNCTION shop.hash(int, int8) RETURNS int8 IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
		CREATE OPERATOR CLASS shop.order_ops FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 shop.cmp(int, int);
		CREATE OPERATOR CLASS shop.hash_ops FOR TYPE int USING hash AS OPERATOR 1 =, FUNCTION 2 shop.hash(int, int8);
		CREATE TABLE shop.ordered (id int PRIMARY KEY, n int); CREATE INDEX ordered_n ON shop.ordered (n shop.order_ops); INSERT INTO shop.ordered VALUES (1, 5);
		CREATE TABLE shop.hashed (id int PRIMARY KEY, v text) PARTITION BY HASH (id shop.hash_ops); CREATE TABLE shop.hashed_0 PARTITION OF shop.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
		CREATE TABLE shop.hashed_1 PARTITION OF shop.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO shop.hashed SELECT g, 'v' FROM generate_series(1, 9) g`, `"shop"."hashed" is new`},
	{"F46 what is there comes to need something new", `CREATE FUNCTION shop.fine(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 <> ''bad'''; ALTER TABLE shop.customer ADD CONSTRAINT fine CHECK (shop.fine(name));
		CREATE TABLE shop.alias (id int PRIMARY KEY, v text); CREATE OR REPLACE VIEW shop.names AS SELECT id, name FROM shop.customer UNION ALL SELECT id, v FROM shop.alias;
		ALTER TABLE shop.customer ADD COLUMN d int DEFAULT shop.twice(4); INSERT INTO shop.alias VALUES (1, 'one')`, `view "shop"."names" changed`},
	{"F43 a partition that goes alone", `CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (9); INSERT INTO shop.tree VALUES (1, 'a')`, `"shop"."tree" is new`},
	{"F43 detached", `ALTER TABLE shop.tree DETACH PARTITION shop.tree_1`, `"shop"."tree_1" is new`},
	{"F43 dropped apart", `DROP TABLE shop.tree, shop.tree_1`, `"shop"."tree_1" was dropped`},
	{"F43 and made again in a tree", `CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (9); INSERT INTO shop.tree VALUES (2, 'b')`, `"shop"."tree" is new`},
	{"F43 and made again alone", `ALTER TABLE shop.tree DETACH PARTITION shop.tree_1; DROP TABLE shop.tree`, `"shop"."tree_1" is new`},
}

// Whatever a new table needs that is new as well comes with it, also what no item of a comparison stands for, and what was
// there first comes to need it.
func TestNewTablesBringWhatTheyNeed(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	for _, s := range newNeeds {
		t.Run(s.name, func(t *testing.T) { r.carries(t, s) })
	}
	r.exec(r.source, `UPDATE shop.paired SET p = (9, 'z'); UPDATE shop.idented SET v = '8'; INSERT INTO shop.made (n) VALUES (3); UPDATE shop.hashed SET v = 'w' WHERE id = 2`)
	r.must(r.catchUp())
	r.sameTables(t)
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.sameDefinitions(t)
}
