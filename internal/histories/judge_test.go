package histories_test

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// judge looks at the side where the clients ended.
func (w *world) judge() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, cond(w.owner == 0, w.source, w.target))
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	final, err := lists(ctx, conn)
	w.must(err)
	rows, err := conn.Query(ctx, "SELECT id, balance FROM h.account")
	w.must(err)
	balances := map[int]int64{}
	var id int
	var balance int64
	_, err = pgx.ForEachRow(rows, []any{&id, &balance}, func() error { balances[id] = balance; return nil })
	w.must(err)
	for _, s := range w.book.check(final, balances) {
		w.Errorf("at the end: %s", s)
	}
	if err := w.sides.Err(); err != nil {
		w.Errorf("%v", err)
	}
	if w.owner == 1 {
		w.byHand()
		a, b := w.dump(w.source), w.forgiven(w.dump(w.target))
		if apart := testpg.LinesApart(a, b); apart != "" {
			w.Errorf("definitions differ:\n%s", apart)
		}
	}
}

// routineName is what an event of a function and its view is known by.
const routineName = "extra_code"

// byHand does on the target what the program named when it was too late to be carried: functions and views that somebody
// made or replaced while the target was being opened. No row depends on them.
func (w *world) byHand() {
	for _, what := range [][2]string{{"FUNCTION", `function "h"."extra_code"()`}, {"VIEW", `view "h"."extra_view"`}} { // as they need each other
		if !strings.Contains(w.log.String(), "definitions differ between both sides: "+what[1]) {
			continue
		}
		w.count("by hand: " + what[0])
		for _, sql := range w.routines {
			if !strings.Contains(sql, what[0]+" h.") {
				continue
			}
			err := w.try(w.target, sql)
			if state := sqlState(err); state != "42723" && state != "42P07" { // it is there, and replaced later
				w.must(err)
			}
		}
	}
}

// broken is how the program names a foreign key that rows of the source break.
var broken = regexp.MustCompile(`foreign_key (\S+) on \S+ is broken by rows of the source and stays NOT VALID`)

// forgiven takes NOT VALID off the keys that were named so: only writers in the replica role can
// break one.
func (w *world) forgiven(dump string) string {
	for _, m := range broken.FindAllStringSubmatch(w.log.String(), -1) {
		if !w.h.replica() {
			w.Errorf("%s, and nobody wrote in the replica role", m[0])
		}
		dump = regexp.MustCompile(`(ADD CONSTRAINT `+regexp.QuoteMeta(m[1])+` .*) NOT VALID;`).ReplaceAllString(dump, "$1;")
	}
	return dump
}

// replica says whether any writer skips foreign keys.
func (h History) replica() bool {
	return slices.ContainsFunc(h.Writers, func(w Writer) bool { return slices.ContainsFunc(w.Ops, func(o Op) bool { return o.Replica }) })
}

func (w *world) dump(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := testpg.Definitions(ctx, url)
	w.must(err)
	return text
}

func (w *world) sql(url, text string) {
	if err := w.try(url, text); err != nil {
		w.Fatalf("%v\n%s", err, text)
	}
}

func (w *world) try(url, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.PgConn().Exec(ctx, text).ReadAll()
	return err
}
