-- A small shop beside pgbench's tables: one of each kind of table that a migration has to get right.
CREATE SCHEMA shop;

CREATE TYPE shop.order_state AS ENUM ('new', 'paid', 'sent', 'returned');
CREATE DOMAIN shop.money_eur AS numeric(12, 2) CHECK (VALUE >= 0);

CREATE TABLE shop.customer (
  id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  email     text NOT NULL UNIQUE,
  profile   jsonb NOT NULL DEFAULT '{}',
  created   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE shop.product (
  id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  title     text NOT NULL,
  net       shop.money_eur NOT NULL,
  gross     numeric GENERATED ALWAYS AS (net * 1.19) STORED,
  tags      text[] NOT NULL DEFAULT '{}',
  changed   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE shop.invoice_item (
  invoice   int NOT NULL,
  line      int NOT NULL,
  product   bigint NOT NULL REFERENCES shop.product,
  customer  uuid REFERENCES shop.customer ON DELETE CASCADE,
  amount    int NOT NULL,
  state     shop.order_state NOT NULL DEFAULT 'new',
  PRIMARY KEY (invoice, line)
);
CREATE INDEX invoice_item_product ON shop.invoice_item (product);

CREATE TABLE shop.visit (
  day       date NOT NULL,
  id        bigint NOT NULL,
  page      text NOT NULL,
  PRIMARY KEY (day, id)
) PARTITION BY RANGE (day);
CREATE TABLE shop.visit_2025 PARTITION OF shop.visit FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE shop.visit_2026 PARTITION OF shop.visit FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');

-- No key at all.
CREATE TABLE shop.job_log (
  at        timestamptz NOT NULL DEFAULT now(),
  text      text
);

-- Owned by no column: nothing but its name ties it to the schema.
CREATE SEQUENCE shop.ticket START 5000;

CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.changed := now();
  RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE UPDATE ON shop.product FOR EACH ROW EXECUTE FUNCTION shop.touch();

CREATE VIEW shop.sold AS
  SELECT p.title, sum(i.amount) AS amount FROM shop.invoice_item i JOIN shop.product p ON p.id = i.product GROUP BY p.title;
CREATE MATERIALIZED VIEW shop.daily AS
  SELECT day, count(*) AS visits FROM shop.visit GROUP BY day;

INSERT INTO shop.customer (email, profile)
  SELECT 'c' || g || '@example.com', jsonb_build_object('n', g, 'vip', g % 7 = 0) FROM generate_series(1, 5000) g;
INSERT INTO shop.product (title, net, tags)
  SELECT 'product ' || g, g % 100 + 0.5, ARRAY['t' || g % 5, NULL] FROM generate_series(1, 1000) g;
INSERT INTO shop.invoice_item (invoice, line, product, customer, amount)
  SELECT g / 3, g % 3, g % 1000 + 1, (SELECT id FROM shop.customer LIMIT 1), g % 9 + 1 FROM generate_series(1, 30000) g;
INSERT INTO shop.visit
  SELECT date '2025-06-01' + (g % 500), g, 'page ' || g % 50 FROM generate_series(1, 60000) g;
INSERT INTO shop.job_log (text) SELECT 'job ' || g % 40 FROM generate_series(1, 500) g;
REFRESH MATERIALIZED VIEW shop.daily;
