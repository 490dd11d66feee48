package pg

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestWants: of two sides, the one whose server had no room is known, through every copy of it.
func TestWants(t *testing.T) {
	url := testpg.NewDB(t, testpg.Shared(t, testMajor))
	sides := [2]*Server{newServer(t, Config{URL: url}), newServer(t, Config{URL: url})}
	conn, err := sides[1].ForRun("run", "mark").Connect(t.Context(), Use{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	raise := func(state string) error {
		_, err := conn.Exec(t.Context(), fmt.Sprintf("DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '%s'; END $$", state))
		return fmt.Errorf("writing: %w", err)
	}
	if err := raise("53100"); sides[0].Wants(err) || !sides[1].Wants(err) {
		t.Errorf("%v: the source wants: %t, the target: %t", err, sides[0].Wants(err), sides[1].Wants(err))
	}
	if err := raise("22012"); sides[1].Wants(err) || sides[1].Wants(errors.New("no room")) {
		t.Errorf("%v is no want of something", err)
	}
}
