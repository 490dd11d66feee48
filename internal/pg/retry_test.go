package pg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestWhatIsRetried(t *testing.T) {
	state := func(code string) error { return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}) }
	for _, tt := range []struct {
		err             error
		retryable, lost bool
	}{
		{nil, false, false},
		{errors.New("a bug"), false, false},
		{context.Canceled, false, false},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), false, false},
		{io.ErrUnexpectedEOF, true, true},
		{pgconn.ErrConnClosed, true, true},
		{state("40001"), true, false},
		{state("40P01"), true, false},
		{state("55P03"), true, false},
		{state("53300"), true, false},
		{state("57P01"), true, true},
		{state("57P03"), true, true},
		{state("08006"), true, true},
		{state("25P03"), false, true},
		{state("23505"), false, false},
		{state("57014"), false, false},
	} {
		if got := Retryable(tt.err); got != tt.retryable {
			t.Errorf("Retryable(%v) is %v", tt.err, got)
		}
		if got := IsConnLost(tt.err); got != tt.lost {
			t.Errorf("IsConnLost(%v) is %v", tt.err, got)
		}
	}
	gone := fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: "XX000", Message: "cache lookup failed for relation 4711"})
	if !Vanished(gone) || Retryable(gone) || Vanished(&pgconn.PgError{Code: "XX000", Message: "invalid page in block 7"}) || Vanished(io.EOF) {
		t.Error("Vanished")
	}
	if SQLState(state("23505")) != "23505" || SQLState(io.EOF) != "" {
		t.Error("SQLState")
	}
}

func TestRetryStopsWhenItShould(t *testing.T) {
	again := &pgconn.PgError{Code: "40001"}
	var events []RetryEvent
	r := Retrier{Tries: 3, Report: func(e RetryEvent) { events = append(events, e) }}
	tries := 0
	err := r.Do(testContext(t), "trying", func(context.Context) error { tries++; return again })
	if tries != 3 || SQLState(err) != "40001" || len(events) != 2 || events[1].Try != 2 || events[1].SQLState != "40001" || events[1].What != "trying" {
		t.Errorf("%d tries, events %+v, error %v", tries, events, err)
	}
	tries = 0
	final := errors.New("no")
	err = Retry(testContext(t), "trying", func(context.Context) error {
		if tries++; tries == 2 {
			return final
		}
		return again
	})
	if tries != 2 || !errors.Is(err, final) {
		t.Errorf("%d tries, error %v", tries, err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	tries = 0
	err = Retry(ctx, "trying", func(context.Context) error { tries++; cancel(); return again })
	if tries != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %d tries, error %v", tries, err)
	}
}

// TestRetryOfLongWork: a try of hours is followed by another one where only their number is bounded.
func TestRetryOfLongWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for elapsed, want := range map[time.Duration]int{0: 1, -1: 3} {
			tries := 0
			err := Retrier{Elapsed: elapsed, Tries: 3}.Do(t.Context(), "building", func(context.Context) error {
				tries++
				time.Sleep(time.Hour)
				return &pgconn.PgError{Code: "57P01"}
			})
			if tries != want || err == nil {
				t.Errorf("Elapsed %v: %d tries, error %v", elapsed, tries, err)
			}
		}
	})
}

// TestRetryOverARestart works on while the server restarts under it.
func TestRetryOverARestart(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor})
	s := newServer(t, Config{URL: c.ConnString()})
	before := connect(t, s, Use{})
	ctx := testContext(t)
	if err := c.Stop(ctx, testpg.Fast); err != nil {
		t.Fatal(err)
	}
	if _, err := before.Exec(ctx, "SELECT 1"); !IsConnLost(err) {
		t.Errorf("after the stop: %v", err)
	}
	failed := 0
	r := Retrier{Elapsed: time.Minute, Tries: 1000, Report: func(e RetryEvent) {
		if failed++; failed == 1 {
			if err := c.Start(ctx); err != nil {
				t.Error(err)
			}
		}
	}}
	err := r.Do(ctx, "connecting", func(ctx context.Context) error {
		conn, err := s.Connect(ctx, Use{})
		if err == nil {
			closeQuietly(ctx, conn)
		}
		return err
	})
	if err != nil || failed == 0 {
		t.Errorf("%d failures, error %v", failed, err)
	}
}
