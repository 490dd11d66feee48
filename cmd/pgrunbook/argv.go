package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// normalise gives long flags that were typed with one dash, as terraform takes them, their second
// one: -auto-approve is --auto-approve. Words after "--" are left alone, and so is what is no
// long flag of any command.
func normalise(root *cobra.Command, argv []string) []string {
	known := map[string]bool{"help": true, "version": true}
	collect(root, known)
	out := make([]string, 0, len(argv))
	for i, word := range argv {
		if word == "--" {
			return append(out, argv[i:]...)
		}
		if strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "--") {
			name, _, _ := strings.Cut(word[1:], "=")
			if len(name) > 1 && known[name] {
				word = "-" + word
			}
		}
		out = append(out, word)
	}
	return out
}

func collect(cmd *cobra.Command, known map[string]bool) {
	add := func(f *pflag.Flag) { known[f.Name] = true }
	cmd.Flags().VisitAll(add)
	cmd.PersistentFlags().VisitAll(add)
	for _, sub := range cmd.Commands() {
		collect(sub, known)
	}
}
