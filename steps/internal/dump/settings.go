package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Setting is one ALTER DATABASE ... SET or ALTER ROLE ... IN DATABASE ... SET of the source.
type Setting struct {
	Role string `json:"role,omitempty"` // empty: for everybody in the database
	Name string `json:"name"`
	Set  string `json:"set"` // "name TO value"
}

// SQL gives the statement for a database of the target.
func (s Setting) SQL(database string) string {
	if s.Role == "" {
		return "ALTER DATABASE " + ident(database) + " SET " + s.Set
	}
	return "ALTER ROLE " + ident(s.Role) + " IN DATABASE " + ident(database) + " SET " + s.Set
}

// Settings reads the settings that are tied to this database. One that makes every session read-only
// is not among them: the target is there to take writes, and a cutover closes and opens a database
// with this very setting.
func Settings(ctx context.Context, conn *pgx.Conn) ([]Setting, error) {
	rows, err := conn.Query(ctx, `SELECT coalesce(r.rolname::text, ''), c.line
		FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole CROSS JOIN LATERAL unnest(s.setconfig) WITH ORDINALITY c (line, no)
		WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (s.setrole = 0 OR r.oid IS NOT NULL)
		ORDER BY 1, c.no`)
	if err != nil {
		return nil, fmt.Errorf("reading the database's settings: %w", err)
	}
	var out []Setting
	var role, line string
	_, err = pgx.ForEachRow(rows, []any{&role, &line}, func() error {
		name, value, _ := strings.Cut(line, "=")
		if role == "" && name == "default_transaction_read_only" && !strings.EqualFold(value, "off") {
			return nil
		}
		out = append(out, Setting{Role: role, Name: name, Set: setClause(line)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the database's settings: %w", err)
	}
	return out, nil
}

// RenamedSettings gives settings of roles the role's name on the target; those of roles that rename does not know
// are left out.
func RenamedSettings(settings []Setting, rename func(string) (string, bool)) []Setting {
	var out []Setting
	for _, s := range settings {
		if s.Role != "" {
			to, ok := rename(s.Role)
			if !ok {
				continue
			}
			s.Role = to
		}
		out = append(out, s)
	}
	return out
}

// ApplySettings makes settings on the target's database.
func ApplySettings(ctx context.Context, target *pgx.Conn, settings []Setting) error {
	var database string
	if err := target.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return fmt.Errorf("carrying the database's settings: %w", err)
	}
	for _, s := range settings {
		if _, err := target.Exec(ctx, s.SQL(database)); err != nil {
			return fmt.Errorf("running %s: %w", s.SQL(database), err)
		}
	}
	return nil
}

// UndoSettings gives the target's database back what it had before made was applied. What somebody has
// changed since stays.
func UndoSettings(ctx context.Context, target *pgx.Conn, made, before []Setting) error {
	now, err := Settings(ctx, target)
	if err != nil {
		return err
	}
	var database string
	if err := target.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return fmt.Errorf("taking the database's settings back: %w", err)
	}
	for _, s := range made {
		if !slices.Contains(now, s) {
			continue
		}
		sql, _, _ := strings.Cut(s.SQL(database), " SET ")
		sql += " RESET " + ident(s.Name)
		if i := slices.IndexFunc(before, func(b Setting) bool { return b.Role == s.Role && b.Name == s.Name }); i >= 0 {
			sql = before[i].SQL(database)
		}
		if _, err := target.Exec(ctx, sql); err != nil {
			return fmt.Errorf("running %s: %w", sql, err)
		}
	}
	return nil
}

// roleSettings adds the statements of ALTER ROLE ... SET that hold in every database.
func roleSettings(ctx context.Context, conn *pgx.Conn, roles []Role, byOID map[uint32]int) error {
	rows, err := conn.Query(ctx, `SELECT s.setrole, c.line FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) WITH ORDINALITY c (line, no)
		WHERE s.setdatabase = 0 AND s.setrole <> 0 ORDER BY s.setrole, c.no`)
	if err != nil {
		return fmt.Errorf("reading the roles' settings: %w", err)
	}
	var role uint32
	var line string
	_, err = pgx.ForEachRow(rows, []any{&role, &line}, func() error {
		if i, ok := byOID[role]; ok {
			roles[i].settings = append(roles[i].settings, "ALTER ROLE "+ident(roles[i].Name)+" SET "+setClause(line))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the roles' settings: %w", err)
	}
	return nil
}

// quotedLists are the settings whose stored value is a list of identifiers, already quoted
// (GUC_LIST_QUOTE in guc_tables.c; pg_dump's variable_is_guc_list_quote).
var quotedLists = map[string]bool{
	"local_preload_libraries": true, "search_path": true, "session_preload_libraries": true,
	"shared_preload_libraries": true, "temp_tablespaces": true, "unix_socket_directories": true,
}

// setClause turns "name=value" of setconfig into "name TO value".
func setClause(line string) string {
	name, value, _ := strings.Cut(line, "=")
	words := strings.Split(name, ".")
	for i, w := range words {
		words[i] = ident(w)
	}
	target := strings.Join(words, ".") + " TO "
	if !quotedLists[strings.ToLower(name)] {
		return target + pg.Literal(value)
	}
	var parts []string
	for _, p := range splitList(value) {
		parts = append(parts, pg.Literal(p))
	}
	if len(parts) == 0 {
		parts = []string{"''"}
	}
	return target + strings.Join(parts, ", ")
}

// splitList splits a list of identifiers at commas outside of double quotes.
func splitList(s string) []string {
	var out []string
	var b strings.Builder
	quoted, any := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' && quoted && i+1 < len(s) && s[i+1] == '"':
			b.WriteByte('"')
			i++
		case c == '"':
			quoted, any = !quoted, true
		case c == ',' && !quoted:
			out = append(out, b.String())
			b.Reset()
			any = false
		case c == ' ' && !quoted:
		default:
			b.WriteByte(c)
			any = true
		}
	}
	if any || b.Len() > 0 {
		out = append(out, b.String())
	}
	return out
}
