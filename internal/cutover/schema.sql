-- One small table of each kind that moves in a way of its own.
CREATE SCHEMA app;
CREATE TABLE app.item (
  id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name  text NOT NULL,
  net   numeric NOT NULL CHECK (net >= 0),
  gross numeric GENERATED ALWAYS AS (net * 2) STORED
);
CREATE INDEX item_name ON app.item (name);
CREATE TABLE app.part (
  item bigint NOT NULL REFERENCES app.item ON DELETE CASCADE,
  no   int NOT NULL,
  note text,
  PRIMARY KEY (item, no)
);
CREATE TABLE app.event (day date NOT NULL, id bigint NOT NULL, text text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE app.event_1 PARTITION OF app.event FOR VALUES FROM ('2026-01-01') TO ('2026-04-01');
CREATE TABLE app.event_2 PARTITION OF app.event DEFAULT;
-- Without keys: reloaded in the freeze, followed by inserts, followed by whole rows.
CREATE TABLE app.jobs (at timestamptz NOT NULL DEFAULT now(), text text);
CREATE TABLE app.trail (at timestamptz NOT NULL DEFAULT now(), text text);
CREATE TABLE app.bag (a int, b text);
CREATE SEQUENCE app.ticket START 5000;
CREATE VIEW app.items AS SELECT i.id, i.name, count(p.no) AS parts FROM app.item i LEFT JOIN app.part p ON p.item = i.id GROUP BY i.id;
CREATE MATERIALIZED VIEW app.totals AS SELECT count(*) AS n FROM app.item;

INSERT INTO app.item (name, net) SELECT 'item ' || g, g % 90 FROM generate_series(1, 1000) g;
INSERT INTO app.part SELECT g % 1000 + 1, g, 'part' FROM generate_series(1, 1500) g;
INSERT INTO app.event SELECT date '2026-01-01' + g % 200, g, 'event' FROM generate_series(1, 1000) g;
INSERT INTO app.jobs (text) SELECT 'job ' || g % 7 FROM generate_series(1, 60) g;
INSERT INTO app.trail (text) SELECT 'seen ' || g % 9 FROM generate_series(1, 300) g;
INSERT INTO app.bag SELECT g % 20, 'b' FROM generate_series(1, 200) g;
ANALYZE;
