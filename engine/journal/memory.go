package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Memory is the journal's twin without a server: the same rules for steps, cursors and approvals.
// It is for tests of the walk and for commands that keep no record.
type Memory struct {
	mu        sync.Mutex
	now       func() time.Time
	steps     map[engine.StepID]*memoryStep
	approvals []engine.Approval
}

type memoryStep struct {
	engine.StepRecord
	cursor []byte
}

// NewMemory makes an empty journal.
func NewMemory() *Memory {
	return &Memory{now: time.Now, steps: map[engine.StepID]*memoryStep{}}
}

// Begin records that a step starts, or returns the record of one that is done.
func (m *Memory) Begin(_ context.Context, s engine.Step) (engine.StepRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.steps[s.ID()]
	if st == nil {
		st = &memoryStep{StepRecord: engine.StepRecord{ID: s.ID()}}
		m.steps[s.ID()] = st
	}
	if err := checkFingerprint(st.StepRecord, s, st.cursor != nil); err != nil {
		return st.StepRecord, fmt.Errorf("recording that step %s begins: %w", s.ID(), err)
	}
	if st.State != engine.StepDone {
		st.StepRecord = engine.StepRecord{ID: s.ID(), State: engine.StepRunning, Fingerprint: s.Fingerprint(), Started: m.now()}
	}
	return st.StepRecord, nil
}

// End records how a step ended.
func (m *Memory) End(_ context.Context, id engine.StepID, cause error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, text := engine.StepDone, ""
	if cause != nil {
		state, text = engine.StepFailed, cause.Error()
	}
	st := m.steps[id]
	if st == nil || (st.State != engine.StepRunning && st.State != state) {
		return fmt.Errorf("recording the end of step %s: %w", id, ErrNotRunning)
	}
	st.State, st.Error, st.Ended = state, text, m.now()
	return nil
}

// Approval gives the newest approval of this name that is bound to this plan.
func (m *Memory) Approval(_ context.Context, name, planDigest string) (engine.Approval, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var best engine.Approval
	found := false
	for _, a := range m.approvals {
		if a.Name == name && a.PlanDigest == planDigest {
			best, found = a, true
		}
	}
	best.Age = m.now().Sub(best.At) // one process, one clock
	return best, found, nil
}

// Approve records an approval.
func (m *Memory) Approve(_ context.Context, a engine.Approval) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.approvals = append(m.approvals, a)
	return nil
}

// Checkpoint gives the step's progress.
func (m *Memory) Checkpoint(id engine.StepID, sink engine.Sink) engine.Checkpoint {
	return &memoryCheckpoint{journal: m, id: id, sink: sink}
}

type memoryCheckpoint struct {
	journal *Memory
	id      engine.StepID
	sink    engine.Sink
}

// Load reads the last cursor.
func (c *memoryCheckpoint) Load(_ context.Context, into any) (bool, error) {
	c.journal.mu.Lock()
	defer c.journal.mu.Unlock()
	st := c.journal.steps[c.id]
	if st == nil || st.cursor == nil {
		return false, nil
	}
	if err := json.Unmarshal(st.cursor, into); err != nil {
		return false, fmt.Errorf("reading the cursor of step %s: %w", c.id, err)
	}
	return true, nil
}

// Save stores the cursor at once; it does not take part in a transaction.
func (c *memoryCheckpoint) Save(_ context.Context, _ pgx.Tx, cursor any) error {
	b, err := json.Marshal(cursor)
	if err != nil {
		return fmt.Errorf("saving the cursor of step %s: %w", c.id, err)
	}
	c.journal.mu.Lock()
	defer c.journal.mu.Unlock()
	st := c.journal.steps[c.id]
	if st == nil || st.State != engine.StepRunning && st.State != engine.StepFailed {
		return fmt.Errorf("saving the cursor of step %s: %w", c.id, ErrNotRunning)
	}
	st.cursor = b
	return nil
}

// Emit passes an event on with the step's name, and the time where it has none.
func (c *memoryCheckpoint) Emit(e engine.Event) {
	e.Step = c.id
	if e.At.IsZero() {
		e.At = c.journal.now()
	}
	c.sink.Emit(e)
}

var (
	_ engine.Journal = (*Memory)(nil)
	_ engine.Journal = (*Run)(nil)
)
