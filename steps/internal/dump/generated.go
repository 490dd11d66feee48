package dump

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Apart is a generated column of a table whose parent has it as a plain one.
type Apart struct {
	Child, Parent scope.Name
	Column        string
	Bound         string // of a partition
	Type          string // with its collation
	NotNull       bool
	Major         int // of the source
}

const apartSQL = `
SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text, a.attname::text, coalesce(pg_get_expr(c.relpartbound, c.oid), ''),
       format_type(a.atttypid, a.atttypmod) || coalesce((SELECT ' COLLATE ' || quote_ident(ln.nspname) || '.' || quote_ident(l.collname)
         FROM pg_collation l JOIN pg_namespace ln ON ln.oid = l.collnamespace JOIN pg_type t ON t.oid = a.atttypid WHERE l.oid = a.attcollation AND l.oid <> t.typcollation), ''), a.attnotnull
  FROM pg_inherits h
  JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = h.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped
  JOIN pg_attribute b ON b.attrelid = p.oid AND b.attgenerated = '' AND NOT b.attisdropped AND b.attname = a.attname
 ORDER BY 1, 2, 5, 3, 4`

// GeneratedApart finds generated columns that the target does not make: servers before 16 let a child have one where its
// parent's column is plain, later ones refuse it (https://www.postgresql.org/docs/release/16.0/).
func GeneratedApart(ctx context.Context, source *pgx.Conn, targetMajor int, s *scope.Scope) ([]Apart, error) {
	major, err := majorOf(ctx, source)
	if err != nil || major < 12 || major >= 16 || targetMajor < 16 {
		return nil, err
	}
	rows, err := source.Query(ctx, apartSQL)
	if err != nil {
		return nil, fmt.Errorf("reading generated columns of children: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a Apart, err error) {
		a.Major = major
		return a, row.Scan(&a.Child.Schema, &a.Child.Name, &a.Parent.Schema, &a.Parent.Name, &a.Column, &a.Bound, &a.Type, &a.NotNull)
	})
	if err != nil {
		return nil, fmt.Errorf("reading generated columns of children: %w", err)
	}
	carried := map[scope.Name]bool{}
	for _, t := range s.Tables {
		carried[t.Name] = true
		for _, m := range t.Members {
			carried[m.Name] = true
		}
	}
	return slices.DeleteFunc(list, func(a Apart) bool {
		out := slices.Contains(s.ExcludedTables, a.Child) || slices.Contains(s.ExcludedSchemas, a.Child.Schema)
		return out || !carried[a.Child] && !carried[a.Parent]
	}), nil
}

// Text says what is refused.
func (a Apart) Text() string {
	return fmt.Sprintf("its column %s is generated and that of %s, which it hangs on, is not: PostgreSQL 16 and newer make no such table", ident(a.Column), pg.Name(a.Parent.Schema, a.Parent.Name))
}

// SQL makes the column a plain one on the source, in one transaction: nobody finds the parent without its child. 12 has no
// DROP EXPRESSION, so there another column takes the values and the name.
func (a Apart) SQL() string {
	child, parent := pg.Name(a.Child.Schema, a.Child.Name), pg.Name(a.Parent.Schema, a.Parent.Name)
	off, on := "ALTER TABLE "+child+" NO INHERIT "+parent, "ALTER TABLE "+child+" INHERIT "+parent
	if a.Bound != "" {
		off, on = "ALTER TABLE "+parent+" DETACH PARTITION "+child, "ALTER TABLE "+parent+" ATTACH PARTITION "+child+" "+a.Bound
	}
	alter := "ALTER TABLE " + child + " "
	plain := alter + "ALTER COLUMN " + ident(a.Column) + " DROP EXPRESSION"
	if a.Major < 13 {
		other := ident("pgrunbook_plain")
		plain = fmt.Sprintf("%[1]sADD COLUMN %[3]s %[4]s; UPDATE %[5]s SET %[3]s = %[2]s; %[1]sDROP COLUMN %[2]s; %[1]sRENAME COLUMN %[3]s TO %[2]s", alter, ident(a.Column), other, a.Type, child)
		if a.NotNull {
			plain += "; " + alter + "ALTER COLUMN " + ident(a.Column) + " SET NOT NULL"
		}
	}
	return fmt.Sprintf("BEGIN; %s; %s; %s; COMMIT;", off, plain, on)
}

// Loses says what SQL takes with it.
func (a Apart) Loses() string {
	if a.Major < 13 {
		return "; indexes and constraints of the column go with the old one: make them again before the table goes back to its parent"
	}
	return ""
}
