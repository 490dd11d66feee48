//go:build failpoint

package failpoint

import (
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

var (
	mutant atomic.Pointer[string]
	acts   = map[string]func(){} // under mu
)

func init() {
	name := os.Getenv("PGRUNBOOK_MUTANT")
	mutant.Store(&name)
}

// Mutant reports whether the process plays the broken protocol of that name: a rule is left out or
// turned round, so that tests can show that they would notice. PGRUNBOOK_MUTANT or Mutate say which;
// several, of which each covers for the other, with commas.
func Mutant(name string) bool { return slices.Contains(strings.Split(*mutant.Load(), ","), name) }

// Mutate switches this process to a mutant, "" to none; back undoes it.
func Mutate(name string) (back func()) {
	old := mutant.Swap(&name)
	return func() { mutant.Store(old) }
}

// On calls f whenever this process passes a failpoint; off ends that.
func On(name string, f func()) (off func()) {
	mu.Lock()
	defer mu.Unlock()
	acts[name] = f
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(acts, name)
	}
}
