package testpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

const tablesQuery = `
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = $1::"char" AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
ORDER BY 1`

// AllTables lists every table that holds rows of an application: plain ones and
// leaf partitions, of all schemas but the system's and pgrunbook's own.
func AllTables(ctx context.Context, url string) ([]string, error) {
	return relations(ctx, url, "r")
}

func relations(ctx context.Context, url, kind string) (names []string, err error) {
	err = notEnded(func() error {
		names, err = relationsOnce(ctx, url, kind)
		return err
	})
	return names, err
}

func relationsOnce(ctx context.Context, url, kind string) ([]string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("listing relations: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return relationsOf(ctx, conn, kind)
}

func relationsOf(ctx context.Context, conn *pgx.Conn, kind string) ([]string, error) {
	rows, err := conn.Query(ctx, tablesQuery, kind)
	if err != nil {
		return nil, fmt.Errorf("listing relations: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing relations: %w", err)
	}
	return names, nil
}

// Sequence is where a sequence stands. Called says that Last was handed out.
type Sequence struct {
	Last   int64
	Called bool
}

// Sequences reads every sequence of an application, by quoted name.
func Sequences(ctx context.Context, url string) (map[string]Sequence, error) {
	var out map[string]Sequence
	err := notEnded(func() (err error) {
		out, err = sequencesOnce(ctx, url)
		return err
	})
	return out, err
}

func sequencesOnce(ctx context.Context, url string) (map[string]Sequence, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("reading sequences: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	names, err := relationsOf(ctx, conn, "S")
	if err != nil {
		return nil, err
	}
	out := make(map[string]Sequence, len(names))
	for _, name := range names {
		var s Sequence
		if err := conn.QueryRow(ctx, "SELECT last_value, is_called FROM "+name).Scan(&s.Last, &s.Called); err != nil {
			return nil, fmt.Errorf("reading sequence %s: %w", name, err)
		}
		out[name] = s
	}
	return out, nil
}

// SchemaDump is what pg_dump says of a database's definitions, in a form that
// compares across servers: one pg_dump for all majors, objects sorted, without
// session settings, version lines and the dump's random \restrict key.
func SchemaDump(ctx context.Context, url string, excludeSchemas ...string) (string, error) {
	bin, err := ClientBinDir(ctx, slices.Max(clientMajors()))
	if err != nil {
		return "", fmt.Errorf("dumping the schema: %w", err)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return "", fmt.Errorf("dumping the schema: %w", err)
	}
	args := []string{"--schema-only"}
	for _, s := range excludeSchemas {
		args = append(args, "--exclude-schema="+pgx.Identifier{s}.Sanitize())
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_dump"), args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "PGHOST=" + config.Host, "PGPORT=" + strconv.Itoa(int(config.Port)),
		"PGUSER=" + config.User, "PGPASSWORD=" + config.Password, "PGDATABASE=" + config.Database,
	}
	var errout strings.Builder
	cmd.Stderr = &errout
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("dumping the schema: %w: %s", err, errout.String())
	}
	return normaliseDump(string(out)), nil
}

var (
	dumpHeader = regexp.MustCompile(`(?m)^--\n-- Name: .*\n--\n`)
	dumpNoise  = regexp.MustCompile(`(?m)^(\\(un)?restrict .*|SET default_(tablespace|table_access_method) = .*|-- PostgreSQL database dump complete)\n`)
)

// initdbPublic matches what pg_dump says of the schema public as initdb made it
// before 15, when everybody could create in it and the superuser owned it.
var initdbPublic = regexp.MustCompile(`^-- Name: (public; Type: SCHEMA;.*\n--\n\n-- \*not\* creating schema, since initdb creates it\n\n+ALTER SCHEMA public OWNER TO .*;$|` +
	`SCHEMA public; Type: ACL;.*\n--\n\nREVOKE USAGE ON SCHEMA public FROM PUBLIC;\nGRANT ALL ON SCHEMA public TO PUBLIC;$)`)

// normaliseDump keeps the blocks that begin with a "-- Name:" header; what
// comes before the first sets up the session.
func normaliseDump(dump string) string {
	dump = dumpNoise.ReplaceAllString(dump, "")
	starts := dumpHeader.FindAllStringIndex(dump, -1)
	blocks := make([]string, 0, len(starts))
	for i, s := range starts {
		end := len(dump)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		block := strings.TrimPrefix(dump[s[0]:end], "--\n")
		block = strings.TrimRight(block, "-\n")
		if !initdbPublic.MatchString(block) {
			blocks = append(blocks, block)
		}
	}
	slices.Sort(blocks)
	return strings.Join(blocks, "\n\n") + "\n"
}
