package runbook

import (
	"fmt"
	"strconv"
	"strings"
)

const versionForms = `write for example ">= 1.2", "~> 1.4" or ">= 1.2, < 2.0"`

// checkVersion compares a constraint with the tool's version. Several conditions are separated
// by commas and all must hold. "~> 1.4" is from 1.4 up to, not including, 2.0.
func checkVersion(constraint, tool string) error {
	have, toolErr := parseVersion(tool)
	for part := range strings.SplitSeq(constraint, ",") {
		part = strings.TrimSpace(part)
		op := part[:len(part)-len(strings.TrimLeft(part, "<>=!~"))]
		number := strings.TrimSpace(part[len(op):])
		want, err := parseVersion(number)
		if err != nil {
			return fmt.Errorf("%q is no version constraint; %s", constraint, versionForms)
		}
		c := compareVersions(have, want)
		var ok bool
		switch op {
		case "", "=":
			ok = c == 0
		case "!=":
			ok = c != 0
		case ">":
			ok = c > 0
		case ">=":
			ok = c >= 0
		case "<":
			ok = c < 0
		case "<=":
			ok = c <= 0
		case "~>":
			ok = c >= 0 && compareVersions(have, nextVersion(want)) < 0
		default:
			return fmt.Errorf("%q is no version constraint; %s", constraint, versionForms)
		}
		// A build from source has no number and is taken to fit.
		if !ok && toolErr == nil {
			return fmt.Errorf("this runbook needs pgrunbook %s and this is %s. Install a version that fits, or change required_version", constraint, tool)
		}
	}
	return nil
}

// parseVersion reads up to three numbers; what follows a hyphen or a plus is ignored.
func parseVersion(text string) ([]int, error) {
	text = strings.TrimPrefix(strings.TrimSpace(text), "v")
	if i := strings.IndexAny(text, "-+"); i >= 0 {
		text = text[:i]
	}
	fields := strings.Split(text, ".")
	if len(fields) > 3 {
		return nil, fmt.Errorf("%q has more than three numbers", text)
	}
	var out []int
	for _, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is no version", text)
		}
		out = append(out, n)
	}
	return out, nil
}

func compareVersions(a, b []int) int {
	at := func(v []int, i int) int {
		if i < len(v) {
			return v[i]
		}
		return 0
	}
	for i := range 3 {
		if d := at(a, i) - at(b, i); d != 0 {
			return d
		}
	}
	return 0
}

// nextVersion is the first version that "~> v" does not allow: the number before the last given
// one goes up.
func nextVersion(v []int) []int {
	if len(v) == 1 {
		return []int{v[0] + 1}
	}
	next := append([]int{}, v[:len(v)-1]...)
	next[len(next)-1]++
	return next
}
