package faults_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestF16SourceDiskFull: deltas share the source's disk with the application. The limit acts before;
// without it the application's own writes fail, say so, and lose nothing, until there is room.
func TestF16SourceDiskFull(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor := majors(t)
	disk := smallDisk(t, 400)
	source := testpg.StartT(t, testpg.Options{Major: sourceMajor, Dir: disk, Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"}})
	r := newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, testpg.Shared(t, targetMajor)))
	const limit = "limit \"delta_size\" {\n  max  = \"64KiB\"\n  then = \"stop\"\n}\n\ncopy {"
	r.edit("copy {", limit)
	r.finally("apply", "--auto-approve", "--until", "capture")
	r.sql(r.source, "UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'")
	o := r.run("", applyArgs...)
	if o.code != 1 || !regexp.MustCompile(`delta_size: it is \d+(\.\d+)?[KM]iB, over 64KiB`).MatchString(o.text) {
		t.Fatalf("deltas over their limit: %s, want 1 with their size and the limit\n%s", o, o.text)
	}
	r.writing(0) // before the disk is full

	r.edit("64KiB", "10GiB")
	p := r.start("load.claimed@3:sleep=3s", applyArgs...)
	if !p.passed("load.claimed", 3) {
		t.Fatal("the runner copied nothing")
	}
	free := fill(t, disk)
	refused := func() int { return r.ledger.Stats().Errors["53100"] }
	for deadline := time.Now().Add(2 * time.Minute); refused() == 0 && source.Running() && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(context.Background(), r.source)
		if err != nil {
			continue
		}
		_, _ = conn.Exec(context.Background(), "UPDATE app.item SET name = name || repeat('.', 200)") // uses up what tables have left
		_ = conn.Close(context.Background())
	}
	if refused() == 0 && source.Running() {
		t.Fatal("the application wrote on on a full disk")
	}
	if !strings.Contains(source.Log(), "No space left on device") {
		t.Fatal("the source's disk was not full")
	}
	free()
	r.back(source)
	r.writing(0)
	o = p.end()
	r.acceptable(o)
	if o.code != 0 && !regexp.MustCompile(`on the source( at \S+)?: `).MatchString(o.text) {
		t.Errorf("the message does not say which side: %s\n%s", o, o.text)
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// extended is the file that a server had no room for.
var extended = regexp.MustCompile(`could not (?:extend|write) (?:to )?file "base/\d+/(\d+)`)

// overfull updates a row, in place of its old version, until the delta of its table finds no room.
func (r *rig) overfull() {
	r.t.Helper()
	ctx := r.t.Context()
	conn, err := pgx.Connect(ctx, r.source)
	r.must(err)
	defer func() { _ = conn.Close(ctx) }()
	for range 100000 {
		if _, err = conn.Exec(ctx, "UPDATE app.label SET n = n + 1 WHERE tag = 'ours'"); err != nil {
			break
		}
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "53100" {
		r.t.Fatalf("the application's write on a full disk: %v, want SQLSTATE 53100", err)
	}
	file := extended.FindStringSubmatch(pgErr.Message)
	if file == nil {
		r.t.Fatalf("the application's write on a full disk: %v", err)
	}
	var ours bool
	r.must(conn.QueryRow(ctx, `SELECT bool_or(coalesce(t.relnamespace, c.relnamespace) = 'pgrunbook'::regnamespace)
		FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid
		WHERE pg_relation_filenode(c.oid) = $1::oid`, file[1]).Scan(&ours))
	if !ours {
		r.t.Fatalf("it was not a delta that found no room: %v", pgErr.Message)
	}
}

// TestF16DeltasFillTheSource: what waits in the deltas has used up the source's disk, and the application's writes fail
// for them. Passes need none, and go on; abort gives all of it back, and the application writes again.
func TestF16DeltasFillTheSource(t *testing.T) {
	for name, way := range map[string][]string{"passes": {"apply", "--auto-approve", "--until", "catch_up"}, "abort": abortArgs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			sourceMajor, targetMajor := majors(t)
			wal, disk := testpg.TempDir(t), smallDisk(t, 400)
			source := testpg.StartT(t, testpg.Options{Major: sourceMajor, Dir: disk})
			r := newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, testpg.Shared(t, targetMajor)))
			r.apart(source, "pg_wal", wal) // without room for it the server ends, and whose the room is does not matter
			before := r.dump(r.source)
			r.finally("apply", "--auto-approve", "--until", "catch_up")
			r.sql(r.source, "DELETE FROM app.label WHERE n % 4 = 0; INSERT INTO app.label VALUES ('ours', 0)")
			r.sql(r.source, "VACUUM app.label")
			r.sql(r.source, "UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'; UPDATE app.item SET name = name || '.'")

			free := fill(t, disk)
			r.overfull()
			r.finally(way...)
			if name == "passes" {
				const ours = "SELECT n FROM app.label WHERE tag = 'ours'" // the clients write what else they find room for
				if source, target := r.number(r.source, ours), r.number(r.target, ours); source == 0 || source != target {
					t.Errorf("passes left behind what waited in the deltas: %d on the source, %d on the target", source, target)
				}
			} else {
				r.writing(0) // as full as the rest is
				if after := r.dump(r.source); after != before {
					t.Errorf("abort left the source different:\n%s", firstDifference(before, after))
				}
			}
			free()
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}
