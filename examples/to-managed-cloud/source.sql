-- What the test fills the source with: the shop, as its owner.
SET ROLE shop_owner;
CREATE SCHEMA shop;

CREATE TABLE shop.customer (
  id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  email text NOT NULL UNIQUE,
  seen  timestamptz NOT NULL DEFAULT now()
);
CREATE SEQUENCE shop.invoice_number START 7000 INCREMENT 10;
CREATE TABLE shop.invoice (
  number   bigint PRIMARY KEY DEFAULT nextval('shop.invoice_number'),
  customer bigint NOT NULL REFERENCES shop.customer,
  total    numeric(12, 2) NOT NULL,
  lines    jsonb NOT NULL DEFAULT '[]'
);
CREATE INDEX invoice_customer ON shop.invoice (customer);

-- Without a key: one only grows, the other is small.
CREATE TABLE shop.page_view (at timestamptz NOT NULL DEFAULT clock_timestamp(), page text NOT NULL, customer bigint);
CREATE TABLE shop.audit_note (at timestamptz NOT NULL DEFAULT now(), note text);

-- Left behind: whole, and the rows alone.
CREATE TABLE shop.tmp_report (n int);
CREATE TABLE shop.import_buffer (id int PRIMARY KEY, raw text);
CREATE TABLE shop.job_lock (id int PRIMARY KEY, holder text);

CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := now(); RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.touch();
CREATE VIEW shop.turnover AS SELECT customer, sum(total) AS total FROM shop.invoice GROUP BY customer;

INSERT INTO shop.customer (email) SELECT 'c' || g || '@example.com' FROM generate_series(1, 5000) g;
INSERT INTO shop.invoice (customer, total) SELECT 1 + g % 5000, g % 500 FROM generate_series(1, 20000) g;
INSERT INTO shop.page_view (page, customer) SELECT '/p/' || g % 100, g % 5000 FROM generate_series(1, 20000) g;
INSERT INTO shop.audit_note (note) SELECT 'note ' || g % 3 FROM generate_series(1, 200) g;
INSERT INTO shop.tmp_report VALUES (1);
INSERT INTO shop.import_buffer SELECT g, 'raw' FROM generate_series(1, 100) g;
INSERT INTO shop.job_lock VALUES (1, 'batch');
