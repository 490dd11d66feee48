-- A table whose every value depends on some setting when it is written as text, and tables whose
-- keys do.
CREATE SCHEMA kinds;
CREATE TYPE kinds.mood AS ENUM ('sad', 'ok', 'it''s "fine"');
CREATE TYPE kinds.pair AS (a int, b text);
CREATE DOMAIN kinds.positive AS numeric CHECK (VALUE > 0 OR VALUE = 'NaN');
CREATE TABLE kinds.value (
  id int PRIMARY KEY,
  i2 smallint, i8 bigint, num numeric, r4 real, r8 double precision, cash money, flag boolean,
  txt text, chr char(5), vch varchar(20), nam name, raw bytea,
  d date, t time, tz timetz, ts timestamp, tstz timestamptz, span interval,
  u uuid, j json, jb jsonb, net inet, cid cidr, mac macaddr, b bit(5), vb varbit,
  pt point, bx box, pth path, crc circle, ln lseg,
  ir int4range, nr numrange, tr tstzrange, tsv tsvector, tsq tsquery,
  ia int[], ta text[], tsa timestamptz[], mo kinds.mood, pa kinds.pair, po kinds.positive, o oid, lsn pg_lsn, xm text
);
INSERT INTO kinds.value VALUES
  (1, 32767, 9223372036854775807, 'NaN', 'Infinity', 1e-310, 1234.56, true,
   E'\\N', 'ab', E'tab\tnl\ncr\r', 'nam"e', '\x00ff5c27',
   'infinity', '24:00', '13:37:59.123456+13:45', '294276-12-31 23:59:59.999999', '4713-01-01 00:00:00+00 BC', '-1 year +2 mons -3 days +04:05:06.789',
   'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'{"a": "\\u00e9", "b":  1.0}', '{"n": 1.00, "z": null}', '::ffff:1.2.3.4/128', '10.1.0.0/16', '08:00:2b:01:02:03', '10101', '1',
   '(0.1,-0)', '((1,1),(0,0))', '[(0,0),(1e-7,1)]', '<(1,2),3.3333333333333335>', '[(0,0),(1,1)]',
   '[1,5)', '(,1.50]', '[2024-03-31 01:59:59+00,infinity)', 'a:1A b:2', 'a & !b',
   '[0:2]={1,NULL,3}', '{"NULL",NULL,"a,b","\\"}', '{"2024-06-01 12:00:00+00",infinity}', 'it''s "fine"', '(1,"a ""q"" , b")', 'NaN', 4294967295, '16/B374D848', '<a>é</a>'),
  (2, -32768, -9223372036854775808, 1e-100, -0.0, 'NaN', -92233720368547758.08, NULL,
   '', '', '', '', '',
   '4713-01-01 BC', '00:00', '00:00-15:59', '-infinity', 'infinity', '178000000 years',
   NULL, 'null', 'null', 'fe80::1', 'fe80::/10', NULL, '00000', '',
   NULL, NULL, '((0,0))', NULL, NULL,
   'empty', 'empty', '(,)', '', '''it''''s''',
   '{}', '{}', NULL, 'sad', '(,)', 0.000000000000000000000000000000000001, 0, '0/0', '\.'),
  (3, 0, 0, 12345678901234567890.123456789000, 1.1, 0.1 + 0.2::float8, 0.01, false,
   'NULL', 'é', '\', 'x', decode(repeat('de00ad', 3000), 'hex'),
   '2024-02-29', '12:00:00.000001', '12:00+00', '2024-10-27 02:30', '2024-10-27 01:30:00+01', '1 day -24:00:00',
   'ffffffff-ffff-ffff-ffff-ffffffffffff', '[1e400, "\ud83d\ude00"]', '[1e400, "😀"]', '192.168.1.5/24', '0.0.0.0/0', 'ff:ff:ff:ff:ff:ff', '11111', '010101',
   '(1e300,-1e-300)', '((1e9,1e9),(-1e9,-1e9))', NULL, '<(0,0),0>', NULL,
   '(,)', '[0.0,0.00]', 'empty', 'x:3,5B', 'a <2> b',
   '{{1,2},{3,4}}', '{"{}","",null}', '{}', 'ok', NULL, 7.00, 1, 'FFFFFFFF/FFFFFFFF', 'a
b');
INSERT INTO kinds.value (id, txt, num, tstz, r8, span, cash) SELECT g, repeat(md5(g::text), 20), g / 7.0, timestamptz '2024-10-26 12:00+00' + g * interval '7 min', sqrt(g), make_interval(mins => g * 977), g::numeric / 3 FROM generate_series(100, 1200) g;

CREATE TABLE kinds.by_span (k interval PRIMARY KEY, n int);
INSERT INTO kinds.by_span SELECT make_interval(mins => g * 61), g FROM generate_series(1, 200) g;
CREATE TABLE kinds.by_time (k timestamptz, d date, n int, PRIMARY KEY (k, d));
INSERT INTO kinds.by_time SELECT timestamptz '2024-10-27 00:00+00' + g * interval '11 min', date '0044-03-15 BC' + g, g FROM generate_series(1, 200) g;
CREATE TABLE kinds.by_float (k double precision PRIMARY KEY, n int);
INSERT INTO kinds.by_float SELECT sqrt(g) / 3, g FROM generate_series(1, 200) g;
INSERT INTO kinds.by_float VALUES ('NaN', 0), ('-Infinity', 0), (-0.0, 0), (1e-310, 0);
CREATE TABLE kinds.by_bytes (k bytea PRIMARY KEY, n int);
INSERT INTO kinds.by_bytes SELECT decode(md5(g::text), 'hex'), g FROM generate_series(1, 200) g;
INSERT INTO kinds.by_bytes VALUES ('', 0), ('\x5c', 0);
CREATE TABLE kinds.by_cash (k money PRIMARY KEY, n int);
INSERT INTO kinds.by_cash SELECT (g * 1111.11)::numeric::money, g FROM generate_series(1, 200) g;
CREATE TABLE kinds.by_array (k timestamptz[] PRIMARY KEY, n int);
INSERT INTO kinds.by_array SELECT ARRAY[timestamptz '2024-10-27 00:00+00' + g * interval '11 min', NULL], g FROM generate_series(1, 200) g;

-- Writes to every table: rows change, keys move, rows go and come.
CREATE FUNCTION kinds.change() RETURNS void LANGUAGE sql AS $$
  UPDATE kinds.value SET num = num / 3, r8 = r8 / 3, tstz = tstz - interval '1 mon', cash = cash * 2, span = span * 1.5 WHERE id >= 100 AND id % 3 = 0;
  UPDATE kinds.value SET i2 = NULL, txt = txt || E'\\' WHERE id < 100;
  DELETE FROM kinds.value WHERE id > 1000 AND id % 7 = 0;
  UPDATE kinds.by_span SET k = k + interval '1 day -00:00:07.5', n = n + 1 WHERE n % 3 = 0;
  UPDATE kinds.by_time SET k = k + interval '1 us', n = n + 1 WHERE n % 3 = 0;
  UPDATE kinds.by_float SET k = k / 7, n = n + 1 WHERE n % 3 = 1;
  DELETE FROM kinds.by_float WHERE k = 'NaN';
  UPDATE kinds.by_bytes SET k = k || '\x00'::bytea WHERE n % 3 = 1;
  UPDATE kinds.by_cash SET k = k + 0.01::numeric::money, n = n + 1 WHERE n % 3 = 0;
  UPDATE kinds.by_array SET k = k || 'infinity'::timestamptz WHERE n % 3 = 0;
$$;
