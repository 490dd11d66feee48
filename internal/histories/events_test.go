package histories_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// laterPause is between the two parts of an event: some passes see what is between them.
const laterPause = 1200 * time.Millisecond

// events lets somebody change tables of the source while a command runs; the function that it
// returns waits for them.
func (w *world) events(c Command) (wait func()) {
	var group sync.WaitGroup
	began := time.Now()
	for _, e := range c.Events {
		group.Go(func() {
			time.Sleep(time.Until(began.Add(time.Duration(e.After) * time.Millisecond)))
			if w.happen(e) && len(e.Later) > 0 {
				time.Sleep(laterPause)
				e.SQL, e.Kind = e.Later, e.Kind+": the second part"
				w.happen(e)
			}
		})
	}
	return group.Wait
}

// happen does it in one transaction that begins with a write: DDL fires no trigger, so only that
// keeps it away from a closed source, and the flip away from it. It says whether it happened.
func (w *world) happen(e Event) bool {
	sql := strings.Join(e.SQL, "; ")
	if !e.Alone {
		sql = "BEGIN; " + probeSQL + "; " + sql + "; COMMIT"
	}
	var last error
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		w.begins(e)
		err := w.alone(ctx, sql)
		cancel()
		switch {
		case err == nil:
			w.count(e.Kind)
			w.stands(e)
			return true
		case sqlState(err) == "25006":
			return false
		case slices.Contains([]string{"55P03", "40P01"}, sqlState(err)) || w.h.Own && sqlState(err) == "" || strings.HasPrefix(sqlState(err), "57"):
			time.Sleep(100 * time.Millisecond)
		default:
			w.fails(e, err)
			return false
		}
		last = err
	}
	w.fails(e, last)
	return false
}

// fails writes down that an event did not happen. A statement that no server could have run is a fault
// of the history; a lock that it did not get is not.
func (w *world) fails(e Event, err error) {
	w.count("failed: " + e.Kind)
	w.mu.Lock()
	w.missed = append(w.missed, fmt.Sprintf("%s on %s: %v", e.Kind, e.Table, err))
	w.mu.Unlock()
	if strings.HasPrefix(sqlState(err), "42") && !w.h.Own { // where a server crashed it may have happened at the first try
		w.Errorf("the event %s on %s cannot happen: %v\n%s", e.Kind, e.Table, err, strings.Join(e.SQL, "; "))
	}
}

func (w *world) alone(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, w.source)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "SET lock_timeout = '2s'; SET deadlock_timeout = '5s'"); err != nil {
		return err
	}
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// begins writes an event down before it happens: from here on it may stop a run.
func (w *world) begins(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.touched = append(w.touched, strings.Trim(e.Table, `"`))
	if slices.Contains(renames, e.Kind) {
		w.keyRenamed.Store(true)
	}
}

// stands says that it happened: from here on no flip may pass over it, if it has an undo.
func (w *world) stands(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Undo != nil {
		w.pending = append(w.pending, e)
	}
	if e.Table == routineName {
		w.routines = append(w.routines, e.SQL...)
	}
}

func (w *world) gone(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = slices.DeleteFunc(w.pending, func(p Event) bool { return p.Table == e.Table && p.Kind == e.Kind })
}

func (w *world) mustStop() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pending)
}

func (w *world) touches() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.touched)
}

// undo does what the message asks for.
func (w *world) undo(pending []Event) {
	for _, e := range pending {
		w.gone(e)
		for range 10 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			err := w.alone(ctx, strings.Join(e.Undo, "; "))
			cancel()
			if err == nil || sqlState(err) != "55P03" && sqlState(err) != "40P01" {
				w.must(err)
				break
			}
		}
		w.count("undone: " + e.Kind)
	}
}
