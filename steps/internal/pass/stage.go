package pass

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// stage is the temporary table that takes one table's rows on To. It outlives the pass: making one
// per pass would grow pg_attribute and write 30 kB of WAL each time.
type stage struct {
	name    string
	columns string // as COPY names them
	row     string // of images: the type of a record of the carried columns
	binary  bool
	same    string // of keys: that the row t is the row s, bit by bit

	emptied bool  // by every commit of the session
	rows    bool  // has some that no commit empties, or may have
	dead    int64 // rows that came since it was made or truncated, at most

	deadBytes int64 // of them, as they came
	used      int64 // by which round of the session
}

// baseTypes gives the columns of a table with domains resolved to their base types: a domain that
// is NOT NULL could not take the empty row of a deleted key.
const baseTypes = `
WITH RECURSIVE b AS (
  SELECT a.attname, a.atttypid AS declared, t.oid, t.typtype, t.typbasetype, t.typtypmod, a.atttypmod AS mod
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
   UNION ALL
  SELECT b.attname, b.declared, t.oid, t.typtype, t.typbasetype, t.typtypmod, b.typtypmod
    FROM b JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype)
SELECT attname::text, declared, format_type(oid, mod) FROM b WHERE typtype <> 'd'`

type baseType struct {
	declared uint32
	name     string
}

// define gives the table's stage and the statement that makes it.
func (s *toSession) define(ctx context.Context, t scope.Table, fromVersion int, emptied bool) (*stage, string, error) {
	types, err := s.types(ctx, t)
	if err != nil {
		return nil, "", err
	}
	cols := written(t)
	var defs, names []string
	add := func(name, typ string) { defs, names = append(defs, name+" "+typ), append(names, name) }
	st := &stage{binary: versionsAgree(fromVersion, s.version), emptied: emptied}
	row := make([]string, 0, len(cols))
	var there, staged []string
	if keyed(t) {
		st.name = fmt.Sprintf("pg_temp.stage_%d", t.ID)
		for i, k := range t.Key.Columns {
			typ := k.DeltaType
			if k.Collation != "" {
				typ += " COLLATE " + k.Collation
			}
			add(fmt.Sprintf("k%d", i+1), typ)
		}
		add("present", "bool")
	} else {
		st.name = fmt.Sprintf("pg_temp.image_%d", t.ID)
		add("n", "int8")
		add("op", `"char"`)
		add("img", "text")
		st.row = fmt.Sprintf("pg_temp.row_%d", t.ID)
	}
	for i, c := range cols {
		typ, ok := types[c.Name]
		if !ok {
			return nil, "", &engine.Error{Op: "preparing a pass for", Object: pg.Name(t.Schema, t.Name.Name), Err: fmt.Errorf("column %q is missing on the %s", c.Name, "following side"), Hint: "Add the column there, then run the same command again."}
		}
		row = append(row, fmt.Sprintf("c%d %s", i+1, typ.name))
		if st.row != "" {
			continue
		}
		add(fmt.Sprintf("c%d", i+1), typ.name)
		there, staged = append(there, fmt.Sprintf("t.%s::%s", ident(c.Name), typ.name)), append(staged, fmt.Sprintf("s.c%d", i+1))
		// Object ids of built-in types are the same everywhere; others may agree by chance.
		st.binary = st.binary && c.Binary && typ.declared == c.TypeOID && c.TypeOID < 16384
	}
	st.columns = strings.Join(names, ", ")
	// The image needs no equality operator, which json and others lack, and tells 1.0 from 1.00.
	st.same = fmt.Sprintf("ROW(%s)::record OPERATOR(pg_catalog.*=) ROW(%s)::record", strings.Join(there, ", "), strings.Join(staged, ", "))
	create := "CREATE TEMPORARY TABLE " + st.name + " (" + strings.Join(defs, ", ") + ")"
	if emptied {
		create += " ON COMMIT DELETE ROWS"
	}
	if st.row != "" {
		create += "; CREATE TEMPORARY TABLE " + st.row + " (" + strings.Join(row, ", ") + ")"
	}
	return st, create, nil
}

func (s *toSession) types(ctx context.Context, t scope.Table) (map[string]baseType, error) {
	rows, err := s.conn.Query(ctx, baseTypes, pg.Name(t.Schema, t.Name.Name))
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	types := map[string]baseType{}
	var name string
	var b baseType
	_, err = pgx.ForEachRow(rows, []any{&name, &b.declared, &b.name}, func() error {
		types[name] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	return types, nil
}

// versionsAgree says whether the binary form of built-in types is the same on both sides: it has
// not changed between 10 and 18.
func versionsAgree(a, b int) bool {
	return a >= 100000 && a < 190000 && b >= 100000 && b < 190000
}

func (j *job) stageRows(ctx context.Context, w *work) error {
	h := finding(w.table, w.backlog.keys)
	query := readRows(dialectOf(j.from.version), w.table, w.span, h)
	return h.on(ctx, j.from.conn, func() error {
		got, err := pg.Pipe(ctx, j.from.conn, j.p.to.conn, copyOut(query, w.stage.binary),
			"COPY "+w.stage.name+" ("+w.stage.columns+") FROM STDIN"+format(w.stage.binary), nil)
		w.stage.deadBytes += got.Bytes
		if err != nil {
			return err
		}
		w.staged = got.Rows
		j.res.Keys += got.Rows
		j.res.Bytes += got.Bytes
		return nil
	})
}
