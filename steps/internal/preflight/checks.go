package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Check is one question to both servers.
type Check struct {
	Code string // stable; the scope's findings are PRE001 to PRE099
	Name string
	Run  func(ctx context.Context, f *Facts) ([]engine.Finding, error)
}

// Checks lists all of them in the order of the report.
func Checks() []Check { return slices.Clone(checks) }

var checks = []Check{
	{"PRE101", "server versions", versions},
	{"PRE102", "pg_dump", dumpTool},
	{"PRE103", "two databases", differentDatabases},
	{"PRE104", "recovery", notInRecovery},
	{"PRE105", "earlier run", earlierRun},

	{"PRE110", "TLS", tlsMode},
	{"PRE111", "connection string", connectionWarnings},
	// PRE112 is Pooler's.

	{"PRE120", "source role", sourceRole},
	{"PRE121", "source rights: database", sourceCreate},
	{"PRE122", "source rights: tables", sourceTables},
	{"PRE123", "source rights: sequences", sourceSequences},
	{"PRE124", "row-level security", rowSecurity},
	{"PRE125", "source rights: the way back", sourceReplica},
	{"PRE126", "source rights: sessions", sourceSessions},

	{"PRE130", "target role", targetRole},
	{"PRE131", "target rights: database", targetCreate},
	{"PRE132", "target rights: replica role", targetReplica},
	{"PRE133", "target rights: owners", targetOwners},
	{"PRE134", "target rights: sessions", targetSessions},
	{"PRE135", "target rights: existing schemas", sharedSchemas},
	{"PRE136", "target rights: existing tables", existingTableRights},
	{"PRE137", "target rights: existing sequences", existingSequenceRights},
	{"PRE138", "target row-level security", targetRowSecurity},
	{"PRE139", "target rights: settings of roles", roleSettings},

	{"PRE140", "long transactions", longTransactions},
	{"PRE141", "prepared transactions", preparedTransactions},

	{"PRE150", "target tables", targetTables},
	{"PRE151", "encodings", encodings},
	{"PRE152", "extensions", extensions},
	{"PRE153", "large objects", largeObjects},
	{"PRE154", "collations", collations},
	{"PRE155", "keys of the target", stricterKeys},
	{"PRE156", "generated columns of children", generatedApart},
	{"PRE157", "NOT NULL constraints", unprovedNotNull},

	{"PRE160", "publications", publications},
	{"PRE161", "subscriptions", subscriptions},
	{"PRE162", "standbys", standbys},
	{"PRE163", "limits", limits},

	{"PRE170", "lock table", lockTable},
	{"PRE171", "disk", disk},
	{"PRE172", "connections", connections},

	{"PRE180", "application timeouts", timeouts},
	{"PRE181", "swallowed errors", swallowedErrors},
	{"PRE182", "event triggers", eventTriggers},
	{"PRE183", "read-only databases", readOnlyDatabases},
	{"PRE184", "owners of the databases", databaseOwners},
}

// Run makes every check and gives all findings. A check that cannot look is a finding too, so that it
// hides no other; an error is only that no check can look any more, and names the first one.
func Run(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	var out []engine.Finding
	for _, c := range checks {
		found, err := c.try(ctx, f)
		if err != nil && (ctx.Err() != nil || f.lost(err)) {
			return nil, fmt.Errorf("checking %s (%s): %w", c.Name, c.Code, err)
		}
		if err != nil {
			found = one(blind(c, err))
		}
		for i := range found {
			found[i].Code = c.Code
		}
		out = append(out, found...)
	}
	return out, nil
}

// try runs a check again where what stopped it passes by itself: other sessions drop and lock what the
// catalogs name while it looks. A session that is gone is for who opened it.
func (c Check) try(ctx context.Context, f *Facts) (found []engine.Finding, err error) {
	_ = pg.Retrier{Tries: checkTries, Also: pg.Vanished}.Do(ctx, c.Name, func(ctx context.Context) error {
		found, err = c.Run(ctx, f)
		if f.lost(err) {
			return nil
		}
		return err
	})
	return found, err
}

const checkTries = 4

// lost reports that no check can look any more.
func (f *Facts) lost(err error) bool {
	return err != nil && (pg.IsConnLost(err) || f.From.conn.IsClosed() || f.To.conn.IsClosed())
}

// blind is the finding of a check that could not look.
func blind(c Check, err error) engine.Finding {
	fix := engine.HintOf(err)
	if fix == "" {
		fix = "Mend what the error says, for example by granting the role that plans what it lacks, and plan again."
	}
	return finding(engine.SeverityError, "", c.Name, fix, "This could not be checked: %v.", err)
}

// finding makes one; its code is filled in by Run.
func finding(s engine.Severity, side engine.Side, object, fix, format string, args ...any) engine.Finding {
	return engine.Finding{Severity: s, Side: side, Object: object, Fix: fix, Text: fmt.Sprintf(format, args...)}
}

func one(f engine.Finding) []engine.Finding { return []engine.Finding{f} }
