package sequences

import "github.com/pgrunbook/pgrunbook/steps/internal/scope"

// Behind names the sequences whose next value on to was handed out on from already, or would be:
// numbers were taken past the margin. Sequences that cycle come round and are left out.
func Behind(from, to []State) []scope.Name {
	var names []scope.Name
	for i := range from {
		n := newNumbers(from[i])
		if !from[i].Cycle && n.ahead(n.next(from[i]), n.next(to[i])) {
			names = append(names, from[i].Name)
		}
	}
	return names
}
