package engine

import "strconv"

// Plural gives "1 table", "2 tables".
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
