package scope

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Refused explains err where it says that a unique index or an exclusion constraint of one side (at) keeps
// out rows that the other side has: a key that only this side has, or that is stricter here. Nil is that err says
// something else, or is explained already.
func Refused(err error, op string, t Table, at, other string) error {
	var said *pgconn.PgError
	var told *engine.Error
	if errors.As(err, &told) || !errors.As(err, &said) || said.Code != "23505" && said.Code != "23P01" { // unique_violation, exclusion_violation
		return nil
	}
	name := pg.Name(said.SchemaName, said.ConstraintName)
	return &engine.Error{
		Op: op, Object: pg.Name(t.Schema, t.Name.Name), Err: fmt.Errorf("%s on the %s refuses rows that the %s has: %w", name, at, other, err),
		Hint: fmt.Sprintf("If the %s has no such key, drop it on the %s: ALTER TABLE %s DROP CONSTRAINT %s, or DROP INDEX %s. Else find out how it differs there, or who else wrote to that table. Then run the same command again.",
			other, at, pg.Name(said.SchemaName, said.TableName), pgx.Identifier{said.ConstraintName}.Sanitize(), name),
	}
}
