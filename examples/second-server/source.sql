-- What the test fills the first server with.
CREATE ROLE shop_owner;
CREATE ROLE shop_clerk;
CREATE SCHEMA shop AUTHORIZATION shop_owner;
GRANT USAGE ON SCHEMA shop TO shop_clerk;
SET ROLE shop_owner;

CREATE TABLE shop.article (
  id    int PRIMARY KEY,
  code  text NOT NULL,
  stock int NOT NULL DEFAULT 0,
  UNIQUE (code)
);
CREATE TABLE shop.price (
  article int NOT NULL REFERENCES shop.article,
  since   date NOT NULL,
  net     numeric(10, 2) NOT NULL,
  PRIMARY KEY (article, since)
);
-- No key, and equal rows.
CREATE TABLE shop.movement (article int, amount int, remark text);

-- Fires on the second server only after a cutover: its rows arrive as rows.
CREATE FUNCTION shop.book() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO shop.movement VALUES (NEW.id, NEW.stock - OLD.stock, 'booked');
  RETURN NEW;
END $$;
CREATE TRIGGER book AFTER UPDATE OF stock ON shop.article FOR EACH ROW EXECUTE FUNCTION shop.book();
GRANT SELECT, UPDATE ON shop.article TO shop_clerk;

INSERT INTO shop.article SELECT g, 'A' || g, g % 50 FROM generate_series(1, 5000) g;
INSERT INTO shop.price SELECT 1 + g % 5000, date '2026-01-01' + g / 5000, g % 90 FROM generate_series(0, 14999) g;
INSERT INTO shop.movement SELECT g % 100, g % 5, 'opening' FROM generate_series(1, 3000) g;
