package histories_test

import (
	"context"
	"regexp"
	"slices"
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
		a, b := w.dump(w.source), w.forgiven(w.dump(w.target))
		if apart := testpg.LinesApart(a, b); apart != "" {
			w.Errorf("definitions differ:\n%s", apart)
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	w.must(err)
	defer func() { _ = conn.Close(ctx) }()
	if _, err = conn.PgConn().Exec(ctx, text).ReadAll(); err != nil {
		w.Fatalf("%v\n%s", err, text)
	}
}
