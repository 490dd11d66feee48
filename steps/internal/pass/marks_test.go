package pass

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A partition that was detached keeps its triggers: what they left of it says nothing of the tree any
// more, and on the other side the name may be a table that was loaded since, or nothing.
func TestF44MarksOfPartitionsThatLeft(t *testing.T) {
	p := newPair(t, `CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100); CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (100) TO (200)`)
	p.app(`INSERT INTO r SELECT g, 'v' FROM generate_series(1, 150) g`)
	p.synced()
	p.app(`TRUNCATE r1, r2; ALTER TABLE r DETACH PARTITION r1; INSERT INTO r1 VALUES (1, 'own')`)
	p.exec(p.target, `ALTER TABLE r DETACH PARTITION r1; DELETE FROM r1; INSERT INTO r1 VALUES (1, 'own')`) // joined, and loaded
	p.synced()
	if got := p.one(p.target, "SELECT count(*)::text FROM r1"); got != "1" {
		t.Errorf("%s rows are left of the table that was a partition", got)
	}
	p.app(`TRUNCATE r1`)
	p.exec(p.target, `DROP TABLE r1`)
	if _, err := p.passer.Exact(p.ctx, Options{Patience: time.Second}); err != nil {
		t.Errorf("a mark of what is gone: %v", err)
	}
	if got := p.one(p.source, "SELECT count(*)::text FROM pgrunbook.truncated"); got != "0" {
		t.Errorf("%s marks are not forgotten", got)
	}
}

// The other side may be cut otherwise: there a partition's TRUNCATE says nothing of which rows went. Neither may it be
// skipped nor empty what has the name, and nothing of it is forgotten until both sides are alike.
func TestF44MarksOfPartitionsThatAreElsewhere(t *testing.T) {
	p := newPair(t, `CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100);
		CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id); CREATE TABLE r2a PARTITION OF r2 FOR VALUES FROM (100) TO (150); CREATE TABLE r2b PARTITION OF r2 FOR VALUES FROM (150) TO (200)`)
	fill := `INSERT INTO r SELECT g, 'v' FROM generate_series(1, 199) g ON CONFLICT DO NOTHING`
	for _, c := range []struct{ name, apart, truncated, want, alike string }{
		{"not there", `DROP TABLE r1; CREATE TABLE rest PARTITION OF r DEFAULT`, `r1`, "no such partition", `ALTER TABLE r DETACH PARTITION rest; ALTER TABLE rest RENAME TO r1; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)`},
		{
			"with other bounds", `DROP TABLE r1; CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (50); CREATE TABLE rest PARTITION OF r DEFAULT`, `r1`, "FROM (0) TO (50)",
			`DROP TABLE r1; ALTER TABLE r DETACH PARTITION rest; ALTER TABLE rest RENAME TO r1; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)`,
		},
		{
			"below one with other bounds", `DROP TABLE r2; DROP TABLE r1; CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (120);
			CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (120) TO (200) PARTITION BY RANGE (id); CREATE TABLE r2a PARTITION OF r2 FOR VALUES FROM (100) TO (150); CREATE TABLE r2b PARTITION OF r2 FOR VALUES FROM (150) TO (200)`, `r2a`, "FROM (120) TO (200)",
			`DROP TABLE r2a; ALTER TABLE r DETACH PARTITION r1; DELETE FROM r1 WHERE id >= 100; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100);
			ALTER TABLE r DETACH PARTITION r2; ALTER TABLE r ATTACH PARTITION r2 FOR VALUES FROM (100) TO (200); CREATE TABLE r2a PARTITION OF r2 FOR VALUES FROM (100) TO (150)`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.exec(p.target, c.apart)
			p.app(`DELETE FROM r; ` + fill)
			p.synced()
			p.app(`TRUNCATE ` + c.truncated)
			_, err := p.passer.Exact(p.ctx, Options{Patience: time.Second})
			var unfit *UnfitError
			if !errors.As(err, &unfit) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "public."+c.truncated+" was truncated") {
				t.Errorf("got %v", err)
			}
			if got := p.one(p.target, "SELECT count(*)::text FROM r"); got != "199" {
				t.Errorf("%s rows are on the other side", got)
			}
			p.app(`TRUNCATE r; INSERT INTO r VALUES (10, 'after'), (110, 'after'), (120, 'after')`) // tells all of them
			p.synced()
			p.exec(p.target, c.alike)
			p.app(`TRUNCATE ` + c.truncated + `; INSERT INTO r VALUES (11, 'again'), (111, 'again')`)
			p.synced()
			if got := p.one(p.source, "SELECT count(*)::text FROM pgrunbook.truncated"); got != "0" {
				t.Errorf("%s marks are not forgotten", got)
			}
		})
	}
}

// Where labels of an enum are hashed, a row is in another partition on each side: bounds do not tell them.
func TestF44MarksOfPartitionsByTheHashOfALabel(t *testing.T) {
	p := newPair(t, `CREATE TYPE e AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'); CREATE TABLE r (id int, k e, PRIMARY KEY (id, k)) PARTITION BY HASH (k);
		CREATE TABLE r1 PARTITION OF r FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE r2 PARTITION OF r FOR VALUES WITH (MODULUS 2, REMAINDER 1);
		CREATE TABLE s (id text PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE s1 PARTITION OF s FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE s2 PARTITION OF s FOR VALUES WITH (MODULUS 2, REMAINDER 1)`)
	p.app(`INSERT INTO r SELECT g, k FROM generate_series(1, 5) g, unnest(enum_range(NULL::e)) k; INSERT INTO s SELECT g::text FROM generate_series(1, 50) g`)
	p.synced()
	p.app(`TRUNCATE s1`)
	p.synced()
	p.app(`TRUNCATE r1`)
	_, err := p.passer.Exact(p.ctx, Options{Patience: time.Second})
	var unfit *UnfitError
	if !errors.As(err, &unfit) || !strings.Contains(err.Error(), "hash of an enum's label") {
		t.Errorf("got %v", err)
	}
	if got := p.one(p.target, "SELECT count(*)::text FROM r"); got != "40" {
		t.Errorf("%s rows are on the other side", got)
	}
	p.app(`TRUNCATE r`)
	p.synced()
}
