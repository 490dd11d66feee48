package testpg_test

import (
	"context"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestMain(m *testing.M) { testpg.Main(m) }

// testContext ends with the test, and long before the test binary's own limit.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
