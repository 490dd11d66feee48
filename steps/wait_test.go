package steps

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestWaitGoesOnWhereAnEarlierProcessWas(t *testing.T) {
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"wait\" \"w\" { duration = \"1h\" }", nil)
	started, err := json.Marshal(waitStarted{At: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(t, s, &paper{cursor: started}); err != nil {
		t.Error(err)
	}
	short := oneStep(t, &Env{}, Before, t.TempDir(), "step \"wait\" \"w\" { duration = \"20ms\" }", nil)
	cp := &paper{}
	if err := apply(t, short, cp); err != nil || cp.cursor == nil {
		t.Errorf("error %v, cursor %s", err, cp.cursor)
	}
}

func TestWaitForSQL(t *testing.T) {
	server, url := database(t, "source")
	query(t, url, "CREATE TABLE public.queue (n int); INSERT INTO public.queue VALUES (1)")
	s := oneStep(t, &Env{Source: server}, Before, t.TempDir(), "step \"wait\" \"w\" {\n on = \"source\"\n sql = \"SELECT count(*) = 0 FROM queue\"\n interval = \"10ms\"\n }", nil)
	done := make(chan error, 1)
	cp := &paper{}
	go func() { done <- s.Apply(t.Context(), engine.StepPlan{}, cp) }()
	for !strings.Contains(cp.text(), "waiting for") {
		select {
		case err := <-done:
			t.Fatalf("it ended early: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	query(t, url, "DELETE FROM public.queue")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	never := oneStep(t, &Env{Source: server}, Before, t.TempDir(), "step \"wait\" \"w\" {\n on = \"source\"\n sql = \"SELECT false\"\n timeout = \"100ms\"\n interval = \"10ms\"\n }", nil)
	if err := apply(t, never, &paper{}); err == nil || !strings.Contains(err.Error(), "not true within 100ms") {
		t.Errorf("error is %v", err)
	}
}
