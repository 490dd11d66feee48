package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// How events are batched and kept.
const (
	eventBuffer = 4096            // in memory; beyond it events are counted and dropped
	eventBatch  = 200             // rows of one insert
	eventEvery  = time.Second     // longest wait of an event for its insert
	eventLimit  = 2 * time.Second // for one insert
	eventsKept  = 20000           // per run; older ones are removed, but for what Keep stores
	lagKept     = 10 * time.Second
)

// urlPassword and wordPassword match what a library's error may carry of a connection string.
var (
	urlPassword  = regexp.MustCompile(`(://[^:/?#\s@]*:)[^@\s]+@`)
	wordPassword = regexp.MustCompile(`(?i)(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s;&]+)`)
)

// clean takes secrets out of a text that is stored.
func (r *Run) clean(s string) string {
	if r.redact != nil {
		s = r.redact(s)
	}
	s = urlPassword.ReplaceAllString(s, "${1}(sensitive)@")
	return wordPassword.ReplaceAllString(s, "${1}(sensitive)")
}

// eventSink appends events in batches on a session of its own.
type eventSink struct {
	run  *Run
	ch   chan engine.Event
	quit chan struct{} // closed by stop
	done chan struct{} // closed when all is written

	mu      sync.Mutex
	lastLag time.Time
	late    *engine.Event // the latest pass that was not stored: predictions rest on it
	dropped int64
	err     error
}

// EventSink appends events to the journal, batched. Emit never waits: what the buffer cannot hold
// is counted and dropped, since a slow journal must not slow the walk. Progress is not stored, lag
// every ten seconds. Texts are redacted. All calls share one sink; Close writes what waits.
func (r *Run) EventSink() engine.Sink {
	r.eventsOnce.Do(func() {
		s := &eventSink{run: r, ch: make(chan engine.Event, eventBuffer), quit: make(chan struct{}), done: make(chan struct{})}
		r.events.Store(s)
		go s.loop()
	})
	return r.events.Load()
}

// EventError gives the number of events that could not be stored and the last error that kept
// them from it.
func (r *Run) EventError() (dropped int64, err error) {
	s := r.events.Load()
	if s == nil {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped, s.err
}

// stopEvents writes what waits and ends the sink; later events are dropped.
func (r *Run) stopEvents() {
	s := r.events.Load()
	if s == nil {
		return
	}
	s.mu.Lock()
	select {
	case <-s.quit:
	default:
		close(s.quit)
	}
	s.mu.Unlock()
	<-s.done
}

// Emit queues an event.
func (s *eventSink) Emit(e engine.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Kind {
	case engine.EventProgress, engine.EventTable:
		return // items have it
	case engine.EventLag:
		if e.At.Sub(s.lastLag) < lagKept && !s.lastLag.IsZero() {
			if e.Elapsed > 0 {
				s.late = &e
			}
			return
		}
		s.lastLag, s.late = e.At, nil
	default:
	}
	select {
	case <-s.quit:
		s.dropped++
		return
	default:
	}
	select {
	case s.ch <- e:
	default:
		s.dropped++
	}
}

func (s *eventSink) loop() {
	defer close(s.done)
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = conn.Close(ctx)
		}
	}()
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	var batch []engine.Event
	flush := func() {
		if len(batch) == 0 {
			return
		}
		if err := s.store(&conn, batch); err != nil {
			s.mu.Lock()
			s.dropped, s.err = s.dropped+int64(len(batch)), err
			s.mu.Unlock()
		}
		batch = batch[:0]
	}
	for {
		select {
		case e := <-s.ch:
			if batch = append(batch, e); len(batch) >= eventBatch {
				flush()
			}
		case <-tick.C:
			flush()
		case <-s.quit:
			for {
				select {
				case e := <-s.ch:
					batch = append(batch, e)
					continue
				default:
				}
				break
			}
			s.mu.Lock()
			if s.late != nil {
				batch = append(batch, *s.late)
			}
			s.mu.Unlock()
			flush()
			return
		}
	}
}

const storeEventsSQL = `
INSERT INTO pgrunbook.event (run, at, kind, step, data)
SELECT $1::text, e.at, e.kind, e.step, e.data
  FROM ROWS FROM (pg_catalog.unnest($2::timestamptz[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::jsonb[])) AS e (at, kind, step, data)`

const capEventsSQL = `
DELETE FROM pgrunbook.event WHERE run = $1::text
   AND n <= (SELECT pg_catalog.max(n) FROM pgrunbook.event WHERE run = $1::text) - $2::bigint
   AND data -> 'kept' IS NULL`

func (s *eventSink) store(conn **pgx.Conn, batch []engine.Event) error {
	ctx, cancel := context.WithTimeout(context.Background(), eventLimit)
	defer cancel()
	if *conn == nil || (*conn).IsClosed() {
		c, err := s.run.target.Connect(ctx, pg.Use{Name: "events", AsyncCommit: true})
		if err != nil {
			return err
		}
		*conn = c
	}
	at, kinds, steps, data := make([]time.Time, 0, len(batch)), make([]string, 0, len(batch)), make([]string, 0, len(batch)), make([]string, 0, len(batch))
	for _, e := range batch {
		e.Run = s.run.ID
		b, err := json.Marshal(s.cleaned(e))
		if err != nil {
			return fmt.Errorf("writing an event as JSON: %w", err)
		}
		at, kinds, steps, data = append(at, e.At), append(kinds, string(e.Kind)), append(steps, string(e.Step)), append(data, string(b))
	}
	return pgx.BeginFunc(ctx, *conn, func(tx pgx.Tx) error {
		if err := Fence(ctx, tx, s.run.ID, s.run.Epoch); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, storeEventsSQL, s.run.ID, at, kinds, steps, data); err != nil {
			return fmt.Errorf("storing events: %w", err)
		}
		_, err := tx.Exec(ctx, capEventsSQL, s.run.ID, eventsKept)
		return err
	})
}

// Record stores one event at once, from a run that was opened or attached. The sink is for the rest.
func (r *Run) Record(ctx context.Context, e engine.Event) error { return r.Keep(ctx, e, nil) }

// Keep is Record for an event with a fact that commands decide by: other events never push it out, and the fact
// is stored as it is, since what redacts texts would change names of ours in it. It must hold no text of others.
func (r *Run) Keep(ctx context.Context, e engine.Event, fact any) error {
	e.Run = r.ID
	b, err := json.Marshal(struct {
		engine.Event
		Kept any `json:"kept,omitempty"`
	}{(&eventSink{run: r}).cleaned(e), fact})
	if err != nil {
		return fmt.Errorf("writing an event as JSON: %w", err)
	}
	err = r.fenced(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, storeEventsSQL, r.ID, []time.Time{e.At}, []string{string(e.Kind)}, []string{string(e.Step)}, []string{string(b)})
		return err
	})
	if err != nil {
		return fmt.Errorf("storing an event: %w", err)
	}
	return nil
}

// ReadOnly reports whether the run was opened only to be read.
func (r *Run) ReadOnly() bool { return r.use.ReadOnly }

// cleaned redacts every text that can come from outside.
func (s *eventSink) cleaned(e engine.Event) engine.Event {
	for _, p := range []*string{&e.Message, &e.Object, &e.Reason, &e.Hint} {
		*p = s.run.clean(*p)
	}
	blockers := make([]string, 0, len(e.Blockers))
	for _, b := range e.Blockers {
		blockers = append(blockers, s.run.clean(b))
	}
	e.Blockers = blockers
	if e.Finding != nil {
		f := *e.Finding
		f.Object, f.Text, f.Fix = s.run.clean(f.Object), s.run.clean(f.Text), s.run.clean(f.Fix)
		e.Finding = &f
	}
	return e
}

// Events reads the newest events of the run, oldest first, at most limit.
func (r *Run) Events(ctx context.Context, limit int) ([]engine.Event, error) {
	return r.EventsOf(ctx, "", limit)
}

// EventsOf reads the newest events of one kind; "" is every kind.
func (r *Run) EventsOf(ctx context.Context, kind engine.EventKind, limit int) ([]engine.Event, error) {
	var out []engine.Event
	err := r.do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT e.data::text FROM
			(SELECT n, data FROM pgrunbook.event WHERE run = $1::text AND ($3::text = '' OR kind = $3::text) ORDER BY n DESC LIMIT $2::int) e ORDER BY e.n`, r.ID, limit, string(kind))
		if err != nil {
			return err
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, t := range texts {
			var e engine.Event
			if jerr := json.Unmarshal([]byte(t), &e); jerr != nil {
				err = errors.Join(err, jerr)
				continue
			}
			out = append(out, e)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the events: %w", err)
	}
	return out, nil
}

// Marked gives the newest event of the run that has a mark; false means that there is none.
func (r *Run) Marked(ctx context.Context, mark string) (engine.Event, bool, error) {
	var e engine.Event
	var text string
	err := r.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT e.data::text FROM pgrunbook.event e
			WHERE e.run = $1::text AND e.data ->> 'mark' = $2::text ORDER BY e.n DESC LIMIT 1`, r.ID, mark).Scan(&text)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return e, false, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &e)
	}
	if err != nil {
		return e, false, fmt.Errorf("reading the newest event with mark %q: %w", mark, err)
	}
	return e, true, nil
}

// Kept reads the fact of the newest event that was kept with a mark; false means that there is none.
func (r *Run) Kept(ctx context.Context, mark string, fact any) (bool, error) {
	var text string
	err := r.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT (e.data -> 'kept')::text FROM pgrunbook.event e
			WHERE e.run = $1::text AND e.data ->> 'mark' = $2::text AND e.data -> 'kept' IS NOT NULL ORDER BY e.n DESC LIMIT 1`, r.ID, mark).Scan(&text)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), fact)
	}
	if err != nil {
		return false, fmt.Errorf("reading what was kept as %q: %w", mark, err)
	}
	return true, nil
}
