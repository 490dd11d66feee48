package freeze

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// A COMMIT that the server refused has not happened; one whose server went down may have.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		severity, code string
		refused        bool
	}{
		{"ERROR", "23503", true}, // a deferred constraint
		{"ERROR", "40001", true},
		{"ERROR", "57014", false},
		{"FATAL", "57P01", false},
		{"FATAL", "XX000", false},
		{"PANIC", "58030", false}, // the log could not be flushed
		{"PANIC", "53100", false}, // nor written
		{"", "08P01", false},      // a pooler's own
		{"", "58000", false},
	} {
		err := fmt.Errorf("committing: %w", &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: tt.severity, Code: tt.code})
		if refused(err) != tt.refused {
			t.Errorf("%s %s: refused is %v", tt.severity, tt.code, !tt.refused)
		}
	}
	if refused(fmt.Errorf("committing: %w", fmt.Errorf("reset by peer"))) {
		t.Error("a lost answer was taken for a refusal")
	}
	if !refused(fmt.Errorf("committing: %w", errNoCommit)) {
		t.Error("a COMMIT that was never sent was not known for it")
	}
}
