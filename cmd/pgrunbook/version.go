package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
)

// release is set by the linker: -X main.release=1.2.3
var release = ""

// version gives the release, or "dev" for a build without one.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version[0] == 'v' && info.Main.Version != "v0.0.0" && !pseudo(info.Main.Version) {
		return info.Main.Version[1:]
	}
	return "dev"
}

// pseudo tells a version that go made from a commit from a released one.
func pseudo(v string) bool {
	dashes := 0
	for _, c := range v {
		if c == '-' || c == '+' {
			dashes++
		}
	}
	return dashes > 0
}

func newVersion(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.json = false
			if !asJSON {
				_, err := fmt.Fprintln(a.stdout, "pgrunbook", version())
				return err
			}
			return json.NewEncoder(a.stdout).Encode(map[string]any{
				"version": version(), "plan_format": engine.PlanFormat, "go": runtime.Version(),
				"platform": runtime.GOOS + "/" + runtime.GOARCH, "commit": commit(),
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object on stdout")
	return cmd
}

func commit() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
