// Command ensure sets a machine up for the tests: system programs, the
// PostgreSQL majors named as arguments, and clients new enough for them. It
// prints what it found and exits with 1 when something cannot be had.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := ensure(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ensure:", err)
		os.Exit(1)
	}
}

func ensure(ctx context.Context, args []string) error {
	source, target, err := testpg.PairMajors()
	if err != nil {
		return err
	}
	majors := []int{source, target}
	for _, a := range args {
		major, err := strconv.Atoi(a)
		if err != nil {
			return fmt.Errorf("reading the majors: %w", err)
		}
		majors = append(majors, major)
	}
	slices.Sort(majors)
	majors = slices.Compact(majors)
	logf := func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
	if err := testpg.EnsureSystem(ctx, logf); err != nil {
		return err
	}
	installs, err := testpg.EnsurePinned(ctx, logf, majors...)
	if err != nil {
		return err
	}
	for _, major := range majors {
		logf("PostgreSQL %-6s %s", installs[major].Version, installs[major].BinDir)
	}
	clients, err := testpg.ClientBinDir(ctx, slices.Max(majors))
	if err != nil {
		return err
	}
	logf("clients           %s", clients)
	if !testpg.Full() {
		return nil
	}
	suites, err := testpg.Suites(ctx)
	if err != nil {
		return err
	}
	logf("PostgreSQL's tests %s", suites)
	return nil
}
