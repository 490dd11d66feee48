-- One small table of each kind that moves in a way of its own.
CREATE EXTENSION citext;
CREATE SCHEMA app;

CREATE TABLE app.item (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name     text NOT NULL,
  net      numeric NOT NULL CHECK (net >= 0),
  gross    numeric GENERATED ALWAYS AS (net * 2) STORED,
  filler   text NOT NULL DEFAULT repeat('x', 300)
);
CREATE INDEX item_name ON app.item (name);

CREATE TABLE app.part (
  item     bigint NOT NULL REFERENCES app.item ON DELETE CASCADE,
  no       int NOT NULL,
  note     text,
  PRIMARY KEY (item, no)
);

-- Unique beside its key: values are swapped between rows.
CREATE TABLE app.slot (id int PRIMARY KEY, pos int NOT NULL CONSTRAINT slot_pos UNIQUE);

CREATE TABLE app.label (tag citext PRIMARY KEY, n int NOT NULL);
CREATE TABLE app.amount (k numeric, u uuid NOT NULL, n int NOT NULL, PRIMARY KEY (k, u));

CREATE TABLE app.event (day date NOT NULL, id bigint NOT NULL, text text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE app.event_1 PARTITION OF app.event FOR VALUES FROM ('2026-01-01') TO ('2026-04-01');
CREATE TABLE app.event_2 PARTITION OF app.event FOR VALUES FROM ('2026-04-01') TO ('2026-07-01');
CREATE TABLE app.event_3 PARTITION OF app.event DEFAULT;

CREATE TABLE app.scratch (id serial PRIMARY KEY, text text);

-- Without keys: reloaded in the freeze, followed by inserts, followed by whole rows.
CREATE TABLE app.jobs (at timestamptz NOT NULL DEFAULT now(), text text);
CREATE TABLE app.trail (at timestamptz NOT NULL DEFAULT now(), text text);
CREATE TABLE app.bag (a int, b text);

CREATE TABLE app.probe (id int PRIMARY KEY, n int NOT NULL);
CREATE SEQUENCE app.ticket START 5000;

CREATE FUNCTION app.tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := trim(NEW.name); RETURN NEW; END $$;
CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON app.item FOR EACH ROW EXECUTE FUNCTION app.tidy();
-- Needs the key, so it can only come after it.
CREATE VIEW app.items AS SELECT i.id, i.name, count(p.no) AS parts FROM app.item i LEFT JOIN app.part p ON p.item = i.id GROUP BY i.id;

INSERT INTO app.item (name, net) SELECT 'item ' || g, g % 90 FROM generate_series(1, 1500) g;
INSERT INTO app.part SELECT g % 1500 + 1, g, 'part' FROM generate_series(1, 2000) g;
INSERT INTO app.slot SELECT g, g FROM generate_series(1, 200) g;
INSERT INTO app.label SELECT 'Label-' || g, g FROM generate_series(1, 300) g;
INSERT INTO app.amount SELECT g / 4.0, md5(g::text)::uuid, g FROM generate_series(1, 400) g;
INSERT INTO app.event SELECT date '2026-01-01' + g % 200, g, repeat('e', 80) FROM generate_series(1, 2000) g;
INSERT INTO app.scratch (text) SELECT 's' FROM generate_series(1, 100) g;
INSERT INTO app.jobs (text) SELECT 'job ' || g % 7 FROM generate_series(1, 60) g;
INSERT INTO app.trail (text) SELECT 'seen ' || g % 9 FROM generate_series(1, 500) g;
INSERT INTO app.bag SELECT g % 20, 'b' FROM generate_series(1, 300) g;
INSERT INTO app.probe VALUES (1, 0);
ANALYZE;
