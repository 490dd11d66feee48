package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// defineSQL gives, for the oid of an item on the side that has it, the statement that makes it. Kinds
// that are not here are made by pg_restore, or with what comes after the rows.
var defineSQL = map[ItemKind]string{
	ItemFunction:    `SELECT pg_get_functiondef($1::oid)`,
	ItemView:        `SELECT 'CREATE OR REPLACE VIEW ' || $1::oid::regclass || coalesce(' WITH (' || array_to_string(reloptions, ', ') || ')', '') || ' AS ' || pg_get_viewdef(oid) FROM pg_class WHERE oid = $1`,
	ItemCheck:       `SELECT 'ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE oid = $1`,
	ItemDomainCheck: `SELECT 'ALTER DOMAIN ' || contypid::regtype || ' ADD CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE oid = $1`,
	ItemPartition: `SELECT 'CREATE TABLE ' || c.oid::regclass || ' PARTITION OF ' || h.inhparent::regclass || ' ' || pg_get_expr(c.relpartbound, c.oid) || coalesce(' PARTITION BY ' || pg_get_partkeydef(c.oid), '')
		FROM pg_class c JOIN pg_inherits h ON h.inhrelid = c.oid WHERE c.oid = $1`,
	ItemSequence: `SELECT format('ALTER SEQUENCE %s AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s', $1::oid::regclass, seqtypid::regtype, seqincrement, seqmin, seqmax, seqstart, seqcache, CASE WHEN seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)
		FROM pg_sequence WHERE seqrelid = $1`,
}

// Define gives the statement that makes an item as it is on this side; "" where this package knows
// none. A view or function that is there is replaced, a sequence altered.
func Define(ctx context.Context, conn *pgx.Conn, i Item) (string, error) {
	query, ok := defineSQL[i.Kind]
	if !ok {
		return "", nil
	}
	var sql string
	if err := conn.QueryRow(ctx, query, i.OID).Scan(&sql); err != nil {
		return "", fmt.Errorf("reading the definition of %s: %w", i.ID(), err)
	}
	return strings.TrimRight(sql, "; \n"), nil
}

// Drop gives the statement that removes an item of the target that the source no longer has; "" where
// that is for a person to decide.
func Drop(i Item) string {
	switch i.Kind {
	case ItemCheck, ItemConstraint, ItemForeignKey:
		return fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s", i.On, i.Name)
	case ItemDomainCheck:
		return fmt.Sprintf("ALTER DOMAIN %s DROP CONSTRAINT IF EXISTS %s", i.On, i.Name)
	case ItemIndex, ItemStatistics, ItemSequence:
		return fmt.Sprintf("DROP %s IF EXISTS %s", strings.ToUpper(string(i.Kind)), i.Name)
	case ItemTrigger, ItemRule, ItemPolicy:
		return fmt.Sprintf("DROP %s IF EXISTS %s ON %s", strings.ToUpper(string(i.Kind)), i.Name, i.On)
	default:
		return ""
	}
}

// AfterRows reports whether an item is made with what comes after the rows.
func (k ItemKind) AfterRows() bool {
	switch k {
	case ItemConstraint, ItemForeignKey, ItemIndex, ItemTrigger, ItemRule, ItemPolicy, ItemStatistics:
		return true
	default:
		return false
	}
}

// Labels gives the statements that make an enum's labels on one side those of the other, in order.
// Between two labels that both sides have there may be new ones, or one that was renamed. Labels
// cannot be dropped or moved, and where several could be the renamed one, it is an error.
func Labels(enum string, want, have []string) ([]string, error) {
	var out []string
	fresh, old := []string{}, []string{}
	flush := func(before string) error {
		switch {
		case len(old) == 0:
			for _, l := range fresh {
				sql := fmt.Sprintf("ALTER TYPE %s ADD VALUE IF NOT EXISTS %s", enum, pg.Literal(l))
				if before != "" {
					sql += " BEFORE " + pg.Literal(before)
				}
				out = append(out, sql)
			}
		case len(old) == 1 && len(fresh) == 1:
			out = append(out, fmt.Sprintf("ALTER TYPE %s RENAME VALUE %s TO %s", enum, pg.Literal(old[0]), pg.Literal(fresh[0])))
		default:
			return fmt.Errorf("labels %q of %s could be any of %q now", old, enum, fresh)
		}
		fresh, old = nil, nil
		return nil
	}
	rest := have
	for _, l := range want {
		at := slices.Index(rest, l)
		if at < 0 {
			if slices.Contains(have, l) {
				return nil, fmt.Errorf("the labels of %s are in another order", enum)
			}
			fresh = append(fresh, l)
			continue
		}
		old = append(old, rest[:at]...)
		if err := flush(l); err != nil {
			return nil, err
		}
		rest = rest[at+1:]
	}
	old = append(old, rest...)
	return out, flush("")
}

// ReadLabels gives an enum's labels in order.
func ReadLabels(ctx context.Context, conn *pgx.Conn, oid uint32) ([]string, error) {
	rows, err := conn.Query(ctx, "SELECT enumlabel::text FROM pg_enum WHERE enumtypid = $1 ORDER BY enumsortorder", oid)
	if err != nil {
		return nil, fmt.Errorf("reading labels: %w", err)
	}
	labels, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading labels: %w", err)
	}
	return labels, nil
}
