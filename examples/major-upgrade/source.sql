-- What the test fills the source with: definitions that PostgreSQL 10 knows.
CREATE ROLE erp_reader;
CREATE SCHEMA erp;
GRANT USAGE ON SCHEMA erp TO erp_reader;

CREATE TYPE erp.state AS ENUM ('new', 'sent', 'paid');
CREATE TABLE erp.customer (
  id    serial PRIMARY KEY,
  name  text NOT NULL,
  vat   varchar(20) UNIQUE,
  notes text[]
);
CREATE TABLE erp.orders (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer int NOT NULL REFERENCES erp.customer,
  state    erp.state NOT NULL DEFAULT 'new',
  weight   double precision,
  placed   timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE erp.order_line (
  order_id bigint NOT NULL REFERENCES erp.orders ON DELETE CASCADE,
  no       smallint NOT NULL,
  item     bytea,
  price    numeric NOT NULL,
  PRIMARY KEY (order_id, no)
);
CREATE TABLE erp.booking (day date NOT NULL, amount numeric NOT NULL, text text NOT NULL) PARTITION BY RANGE (day);
CREATE TABLE erp.booking_2025 PARTITION OF erp.booking FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE erp.booking_2026 PARTITION OF erp.booking FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE SEQUENCE erp.ticket START 100 INCREMENT -1 MAXVALUE 100 MINVALUE -1000000;

CREATE TABLE erp.price_log (item int, price numeric, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION erp.log_price() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO erp.price_log (item, price) VALUES (NEW.no, NEW.price);
  RETURN NEW;
END $$;
CREATE TRIGGER log_price AFTER UPDATE ON erp.order_line FOR EACH ROW EXECUTE PROCEDURE erp.log_price();
GRANT SELECT ON ALL TABLES IN SCHEMA erp TO erp_reader;

INSERT INTO erp.customer (name, vat, notes) SELECT 'customer ' || g, 'DE' || g, ARRAY['a', NULL, 'b,"c'] FROM generate_series(1, 3000) g;
INSERT INTO erp.orders (customer, weight) SELECT 1 + g % 3000, g / 3.0 FROM generate_series(1, 10000) g;
INSERT INTO erp.order_line SELECT 1 + g / 3, g % 3, decode(md5(g::text), 'hex'), g / 7.0 FROM generate_series(1, 29000) g;
INSERT INTO erp.booking SELECT date '2025-01-01' + g % 700, g, 'booking ' || g % 10 FROM generate_series(1, 5000) g;
SELECT nextval('erp.ticket') FROM generate_series(1, 40);
