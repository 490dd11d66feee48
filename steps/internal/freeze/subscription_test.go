package freeze

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestR8SubscribedSource: an apply worker fires no statement triggers, so it writes through a closed
// gate, and what it writes after the final pass is lost. No attempt flips while a subscription that
// writes into tables in scope is enabled, also when that happens after the first look.
func TestR8SubscribedSource(t *testing.T) {
	major, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	cluster := testpg.StartT(t, testpg.Options{Major: major, Settings: map[string]string{"wal_level": "logical"}})
	p := newPairOn(t, cluster)
	publisher := testpg.NewDB(t, cluster)
	p.exec(publisher, "CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL); CREATE PUBLICATION orders FOR TABLE public.account")
	p.exec(publisher, "SELECT pg_create_logical_replication_slot('orders', 'pgoutput')")
	p.exec(p.source, "CREATE SUBSCRIPTION \"Orders\" CONNECTION '"+publisher+"' PUBLICATION orders WITH (create_slot = false, slot_name = 'orders', copy_data = false)")
	t.Cleanup(func() { p.exec(p.source, `DROP SUBSCRIPTION "Orders"`) })
	eventually := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	replicated := func(id string) {
		t.Helper()
		p.exec(publisher, "INSERT INTO public.account VALUES ("+id+", 0)")
		reader := p.connect(p.source)
		eventually("row "+id+" of the publisher", func() bool {
			var there bool
			if err := reader.QueryRow(context.Background(), "SELECT EXISTS (SELECT FROM public.account WHERE id = "+id+")").Scan(&there); err != nil {
				t.Fatal(err)
			}
			return there
		})
	}
	refused := func(when string) {
		t.Helper()
		_, err := p.freeze.Attempt(context.Background(), 1)
		var blocked *BlockedError
		if !errors.As(err, &blocked) || !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), `ALTER SUBSCRIPTION "Orders" DISABLE`) {
			t.Fatalf("%s: got %v", when, err)
		}
		p.wantSide("source")
	}
	disabled := func() {
		t.Helper()
		p.exec(p.source, `ALTER SUBSCRIPTION "Orders" DISABLE`)
		conn := p.connect(p.source)
		eventually("the worker's end", func() bool { return Subscribed(context.Background(), conn, p.freeze.Tables) == nil })
	}

	replicated("100")
	refused("with a live subscription")
	disabled()
	prepare := p.freeze.Prepare
	p.freeze.Prepare = func(ctx context.Context) (Pass, error) { // after the look, before the hold
		p.exec(p.source, `ALTER SUBSCRIPTION "Orders" ENABLE`)
		return prepare(ctx)
	}
	refused("enabled after the look")
	p.freeze.Prepare = prepare
	disabled()
	p.freeze.Decide = func(context.Context, *Certificate) error { // after the proof
		p.exec(p.source, `ALTER SUBSCRIPTION "Orders" ENABLE`)
		return nil
	}
	refused("enabled after the proof")
	p.freeze.Decide = func(context.Context, *Certificate) error { return nil }
	disabled()
	if _, err := p.freeze.Attempt(context.Background(), 2); err != nil {
		t.Fatal("once it is disabled:", err)
	}
	p.wantSide("target")

	p.exec(p.source, `ALTER SUBSCRIPTION "Orders" ENABLE`)
	replicated("200") // through the closed gate: what the looks are for
	p.wantSide("target")
	if err := Subscribed(context.Background(), p.connect(p.source), p.freeze.Tables); err == nil {
		t.Error("a subscription that writes into the closed side is not found")
	}
}
