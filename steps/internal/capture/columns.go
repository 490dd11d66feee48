package capture

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Shape is what is recorded of a captured table's root: the columns and partitions that passes
// carry, once every change since the plan was handled.
type Shape struct {
	Capture scope.Capture
	Columns []string // as ColumnText, in order, without dropped ones
	Members []scope.Name
}

// ColumnText is what of a column decides how passes carry it. It begins with its name.
func ColumnText(c scope.Column) string {
	text := c.Name + " " + c.Type
	if c.Generated {
		text += " generated"
	}
	if c.Identity != "" {
		text += " identity " + c.Identity
	}
	return text
}

// Shapes reads the recorded shape of every captured table, by id.
func Shapes(ctx context.Context, conn *pgx.Conn, tables []scope.Table) (map[int32]Shape, error) {
	ids, _, err := checkable(ctx, conn, tables)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	all, err := records(ctx, conn, ids)
	if err != nil {
		return nil, err
	}
	shapes := make(map[int32]Shape, len(all))
	for id, rec := range all {
		var s Shape
		if kind, _, _ := strings.Cut(rec.Mode, " "); kind != "" {
			s.Capture = scope.Capture(kind)
		}
		for i, r := range rec.print.Relations {
			if i > 0 {
				s.Members = append(s.Members, scope.Name{Schema: r.Schema, Name: r.Name})
				continue
			}
			for _, c := range r.Columns {
				if !c.Dropped {
					s.Columns = append(s.Columns, ColumnText(scope.Column{Name: c.Name, Type: c.Type, Generated: c.Generated, Identity: c.Identity}))
				}
			}
		}
		shapes[id] = s
	}
	return shapes, nil
}
