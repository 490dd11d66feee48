package dump

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// neverSQL lists objects that no run carries, with the reason.
const neverSQL = `
SELECT 'publication ' || quote_ident(pubname) || ' is not carried: make it on the target after the cutover' FROM pg_publication
UNION ALL
SELECT 'security label of ' || provider || ' on ' || pg_describe_object(classoid, objoid, objsubid) || ' is not carried: its provider must be there first'
  FROM pg_seclabel
UNION ALL
SELECT 'foreign table ' || c.oid::regclass::text || ' is made on the target; its rows stay where they are, and its user mappings are carried without being tried'
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'f' AND n.nspname !~ '^pg_'
 ORDER BY 1`

// NeverCarried gives one sentence for each object of the source that is not carried whatever the
// scope says, and for each tablespace that the target lacks.
func NeverCarried(ctx context.Context, source, target *pgx.Conn) ([]string, error) {
	rows, err := source.Query(ctx, neverSQL)
	if err != nil {
		return nil, fmt.Errorf("reading what is not carried: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading what is not carried: %w", err)
	}
	var subscriptions int
	if err := source.QueryRow(ctx, "SELECT count(*) FROM pg_stat_subscription").Scan(&subscriptions); err != nil {
		return nil, fmt.Errorf("counting subscriptions: %w", err)
	}
	if subscriptions > 0 {
		out = append(out, "subscriptions of the source are not carried: make them on the target after the cutover, with copy_data = false")
	}
	lacking, err := lackingTablespaces(ctx, source, target)
	if err != nil {
		return nil, err
	}
	for _, ts := range lacking {
		out = append(out, fmt.Sprintf("tablespace %s is not on the target: everything goes to the database's default tablespace", ts))
	}
	return out, nil
}

// LacksTablespaces reports whether the target lacks a tablespace that objects of the source are in.
func LacksTablespaces(ctx context.Context, source, target *pgx.Conn) (bool, error) {
	lacking, err := lackingTablespaces(ctx, source, target)
	return len(lacking) > 0, err
}

func lackingTablespaces(ctx context.Context, source, target *pgx.Conn) ([]string, error) {
	names := func(conn *pgx.Conn, sql string) ([]string, error) {
		rows, err := conn.Query(ctx, sql)
		if err != nil {
			return nil, fmt.Errorf("reading tablespaces: %w", err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("reading tablespaces: %w", err)
		}
		return list, nil
	}
	used, err := names(source, "SELECT DISTINCT t.spcname::text FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE t.spcname !~ '^pg_' ORDER BY 1")
	if err != nil {
		return nil, err
	}
	there, err := names(target, "SELECT spcname::text FROM pg_tablespace")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(used, func(n string) bool { return slices.Contains(there, n) }), nil
}
