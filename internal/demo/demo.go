package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

//go:embed schema.sql
var shopSQL string

// Options of a demo. The zero value is good.
type Options struct {
	Runbook []byte // text of the runbook; it finds the servers in SOURCE_URL and TARGET_URL
	Scale   int    // of pgbench. Defaults to 10, a million accounts
	Clients int    // that write all the time. Defaults to 4
	Source  int    // major. Defaults to 15, or the oldest at hand
	Target  int    // major. Defaults to 18, or the newest at hand
	Keep    bool   // leave the clusters up until the context ends

	// Run runs the program with these arguments and environment additions, and gives its exit code.
	Run func(ctx context.Context, dir string, env []string, args ...string) (int, error)
	Out io.Writer // what the demo itself says
}

// ErrDifferent says that rows differ or that an acknowledged commit is lost.
var ErrDifferent = errors.New("the target is not what the source was")

// Result is what the demo proved.
type Result struct {
	Acknowledged int
	Lost         int
	Differences  []testpg.Difference
	Blocked      time.Duration // longest time without an acknowledged commit, over all clients
}

// String is the demo's last line.
func (r Result) String() string {
	verdict := "ok"
	if r.Lost != 0 || len(r.Differences) != 0 {
		verdict = "failed"
	}
	return fmt.Sprintf("demo: %s, %d acknowledged transactions, %d lost, %d rows differ, writes blocked %d ms",
		verdict, r.Acknowledged, r.Lost, len(r.Differences), r.Blocked.Milliseconds())
}

// stage is everything that the demo has running.
type stage struct {
	o              Options
	dir            string
	source, target *testpg.Cluster
	sourceURL      string
	targetURL      string
	clients        string // folder with pg_dump and pg_restore
	ledger         *testpg.Ledger
	turnstile      *testpg.Turnstile
}

const database = "shop"

// Run plays the whole migration.
func Run(ctx context.Context, o Options) (Result, error) {
	s, err := setUp(ctx, o)
	if err != nil {
		return Result{}, err
	}
	defer s.tearDown()
	result, err := s.migrate(ctx)
	if s.o.Keep && (err == nil || errors.Is(err, ErrDifferent)) {
		s.lookAround(ctx, result)
	}
	return result, err
}

func (o Options) withDefaults(ctx context.Context) (Options, error) {
	if o.Scale == 0 {
		o.Scale = 10
	}
	if o.Clients == 0 {
		o.Clients = 4
	}
	if o.Source != 0 && o.Target != 0 {
		return o, nil
	}
	majors, err := testpg.Majors(ctx)
	if err != nil {
		return o, err
	}
	if len(majors) == 0 {
		return o, errors.New("no PostgreSQL can be had: install postgresql, or npm to fetch it")
	}
	if o.Source == 0 {
		o.Source = majors[0]
		if slices.Contains(majors, 15) {
			o.Source = 15
		}
	}
	if o.Target == 0 {
		o.Target = majors[len(majors)-1]
	}
	return o, nil
}

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.o.Out, "demo: "+format+"\n", args...) }

func setUp(ctx context.Context, o Options) (_ *stage, err error) {
	if o, err = o.withDefaults(ctx); err != nil {
		return nil, err
	}
	s := &stage{o: o}
	defer func() {
		if err != nil {
			s.tearDown()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "pgrunbook-demo-"); err != nil {
		return nil, err
	}
	s.say("starting PostgreSQL %d (source) and %d (target)", o.Source, o.Target)
	logf := func(format string, args ...any) { s.say(format, args...) }
	if _, err = testpg.Ensure(ctx, logf, o.Source, o.Target); err != nil {
		return nil, err
	}
	if s.clients, err = testpg.ClientBinDir(ctx, o.Source); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		s.source, err = testpg.Start(context.WithoutCancel(gctx), testpg.Options{Major: o.Source})
		return err
	})
	g.Go(func() (err error) {
		s.target, err = testpg.Start(context.WithoutCancel(gctx), testpg.Options{Major: o.Target})
		return err
	})
	if err = g.Wait(); err != nil {
		return nil, err
	}
	for _, c := range []*testpg.Cluster{s.source, s.target} {
		if err = c.Exec(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
			return nil, err
		}
	}
	s.sourceURL, s.targetURL = s.source.URL(database, s.source.Superuser), s.target.URL(database, s.target.Superuser)
	return s, s.fill(ctx)
}

// fill makes pgbench's tables, the shop and the ledger.
func (s *stage) fill(ctx context.Context) error {
	s.say("filling the source: pgbench at scale %d and a shop", s.o.Scale)
	if err := initPgbench(ctx, s.sourceURL, s.o.Scale); err != nil {
		return err
	}
	if err := script(ctx, s.sourceURL, shopSQL); err != nil {
		return fmt.Errorf("filling the shop: %w", err)
	}
	s.ledger = testpg.NewLedger(testpg.LedgerOptions{Schema: "ledger", Accounts: 1000, Pause: time.Millisecond})
	if err := s.ledger.Setup(ctx, s.sourceURL); err != nil {
		return err
	}
	var err error
	s.turnstile, err = testpg.NewTurnstile(s.targetURL, s.sourceURL, "UPDATE ledger.account SET balance = balance WHERE id = 1", false)
	return err
}

// migrate walks the runbook while the clients write, and compares.
func (s *stage) migrate(ctx context.Context) (Result, error) {
	file := filepath.Join(s.dir, "demo.runbook.hcl")
	if err := os.WriteFile(file, s.o.Runbook, 0o600); err != nil {
		return Result{}, err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	urls := []string{s.sourceURL, s.turnstile.URL()}
	writers, cctx := errgroup.WithContext(context.WithoutCancel(ctx))
	writers.Go(func() error { return s.ledger.Run(writing, urls, s.o.Clients) })
	for i := range 2 {
		writers.Go(func() error { return traffic(writing, cctx, urls, uint64(i)) })
	}
	s.say("%d clients write from here on, and never stop", s.o.Clients+2)
	env := []string{"SOURCE_URL=" + s.sourceURL, "TARGET_URL=" + s.targetURL, "PGRUNBOOK_PG_BIN_DIRS=" + s.clients}
	for _, args := range [][]string{{"plan", file}, {"apply", "--auto-approve", file}} {
		s.say("pgrunbook %s", strings.Join(append(slices.Clone(args[:len(args)-1]), filepath.Base(file)), " "))
		code, err := s.o.Run(ctx, s.dir, env, args...)
		if err == nil && code != 0 {
			err = fmt.Errorf("pgrunbook %s ended with exit code %d", args[0], code)
		}
		if err != nil {
			stop()
			return Result{}, errors.Join(err, writers.Wait())
		}
	}
	result, err := s.compare(ctx)
	stop()
	if waitErr := writers.Wait(); err == nil {
		err = waitErr
	}
	if err != nil {
		return result, err
	}
	report, err := s.ledger.Check(ctx, s.targetURL)
	if err != nil {
		return result, err
	}
	return s.verdict(result, report)
}

// verdict names what differs and what is lost.
func (s *stage) verdict(result Result, report testpg.Report) (Result, error) {
	result.Acknowledged, result.Lost, result.Blocked = report.Acknowledged, report.LostCount, report.LongestGap
	if !report.OK() || len(result.Differences) > 0 {
		s.say("%s", report)
		for _, d := range result.Differences {
			s.say("differs: %s", d)
		}
		return result, ErrDifferent
	}
	return result, nil
}

// compare sets the closed source against the target as it was before its first write.
func (s *stage) compare(ctx context.Context) (Result, error) {
	snapshot, err := s.turnstile.Wait(ctx)
	if err != nil {
		return Result{}, err
	}
	tables, err := testpg.AllTables(ctx, s.sourceURL)
	if err != nil {
		return Result{}, err
	}
	there, err := testpg.AllTables(ctx, s.targetURL)
	if err != nil {
		return Result{}, err
	}
	for _, t := range there {
		if !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	s.say("comparing every row of %d tables, the clients write on", len(tables))
	diffs, err := testpg.DiffAt(ctx, s.sourceURL, s.targetURL, snapshot, tables)
	return Result{Differences: diffs}, err
}

// lookAround gives the verdict at once, since the demo's own last line comes after Ctrl-C.
func (s *stage) lookAround(ctx context.Context, result Result) {
	_, _ = fmt.Fprintln(s.o.Out, result)
	s.say("the clusters stay up until you press Ctrl-C:")
	s.say("  psql '%s'   # the source, closed", s.sourceURL)
	s.say("  psql '%s'   # the target", s.targetURL)
	s.say("  TARGET_URL='%s' SOURCE_URL='%s' pgrunbook status %s   # or verify, follow, rollback, finish", s.targetURL, s.sourceURL, filepath.Join(s.dir, "demo.runbook.hcl"))
	<-ctx.Done()
}

// tearDown leaves nothing running and nothing on disk but the download cache.
func (s *stage) tearDown() {
	if s.turnstile != nil {
		s.turnstile.Close()
	}
	for _, c := range []*testpg.Cluster{s.source, s.target} {
		if c != nil {
			if err := c.Remove(); err != nil {
				s.say("removing a cluster: %v", err)
			}
		}
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}
