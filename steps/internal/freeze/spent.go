package freeze

import (
	"fmt"
	"strings"
	"time"
)

// overBudgetError is the end of an attempt in which writers waited too long.
type overBudgetError struct{ budget time.Duration }

func (e *overBudgetError) Error() string {
	return fmt.Sprintf("the write block reached its budget of %s", e.budget)
}

// spent says where the time of a write block went: one part after the other, each up to the next one's begin.
type spent struct {
	parts  []string
	begins []time.Time
}

func (s *spent) begin(part string, at time.Time) {
	s.parts, s.begins = append(s.parts, part), append(s.begins, at)
}

// String gives the parts, the last one up to now.
func (s *spent) String() string {
	out := make([]string, len(s.parts))
	for i, part := range s.parts {
		end := time.Now()
		if i+1 < len(s.begins) {
			end = s.begins[i+1]
		}
		out[i] = fmt.Sprintf("%s %s", part, end.Sub(s.begins[i]).Round(time.Millisecond))
	}
	return strings.Join(out, ", ")
}
