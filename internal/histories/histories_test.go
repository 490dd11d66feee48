package histories_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// program is the product, built once with its failpoints.
var program string

func TestMain(m *testing.M) {
	debug.SetGCPercent(800) // little lives long, and the processors are the servers'
	testpg.Main(built{m})
}

type built struct{ m *testing.M }

// memory is where Linux keeps files in memory. Each history makes two databases of some hundred files and
// drops them, which takes a disk's file system longer than the servers.
const (
	memory     = "/dev/shm"
	memoryFree = 4 << 30
)

// inMemory lets the servers live there, unless somebody has said where, or there is little room.
func inMemory() error {
	var st syscall.Statfs_t
	if os.Getenv("PGRUNBOOK_TEST_DIR") != "" || syscall.Statfs(memory, &st) != nil || st.Bavail*uint64(st.Bsize) < memoryFree {
		return nil
	}
	return os.Setenv("PGRUNBOOK_TEST_DIR", filepath.Join(memory, fmt.Sprintf("pgrunbook-testpg-%d", os.Getuid())))
}

func (b built) Run() int {
	if err := inMemory(); err != nil {
		fmt.Fprintln(os.Stderr, "choosing where the servers live:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "pgrunbook-histories-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "pgrunbook")
		var out []byte
		out, err = exec.CommandContext(context.Background(), "go", "build", "-tags", "failpoint", "-o", program, "github.com/pgrunbook/pgrunbook/cmd/pgrunbook").CombinedOutput()
		err = errors.Join(err, cond(err != nil, errors.New(string(out)), nil))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the program:", err)
		return 1
	}
	return b.m.Run()
}

func soak() bool { return os.Getenv("PGRUNBOOK_SOAK") != "" }

// item is one history to play.
type item struct {
	name   string
	repeat string // what to type to play it again
	h      History
}

// fixed are the seeds of the short form: always the same, so that it can be repeated.
var fixed = between(1, 25)

// chosen are the histories that this run plays: those that the environment names, or the fixed
// seeds, or, in the long form, 1,000 random ones, each tenth on servers that may crash.
func chosen(t *testing.T) []item {
	source, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	if path := os.Getenv("PGRUNBOOK_HISTORY_FILE"); path != "" {
		h, err := readHistory(path)
		if err != nil {
			t.Fatal(err)
		}
		return []item{{filepath.Base(path), pairing() + "PGRUNBOOK_HISTORY_FILE=" + path, h}}
	}
	seeds := fixed
	if soak() {
		seeds = between(uint64(rand.Uint32()), 1000)
	}
	if s := os.Getenv("PGRUNBOOK_HISTORY_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	if s := os.Getenv("PGRUNBOOK_HISTORY_SEEDS"); s != "" {
		var from, to uint64
		if _, err := fmt.Sscanf(s, "%d:%d", &from, &to); err != nil || to < from {
			t.Fatalf("PGRUNBOOK_HISTORY_SEEDS=%s: want the first and the last, like 1:200", s)
		}
		seeds = between(from, to-from+1)
	}
	var list []item
	for _, seed := range seeds {
		own := soak() && seed%10 == 0
		list = append(list, item{f("seed%d", seed), f("%sPGRUNBOOK_HISTORY_SEED=%d%s", pairing(), seed, cond(own, " PGRUNBOOK_SOAK=1", "")), generate(seed, source, own)})
	}
	return list
}

// pairing is what makes the same history of a seed again: an older source has no MERGE.
func pairing() string {
	pair := os.Getenv("PGRUNBOOK_TEST_PAIR")
	return cond(pair == "", "", "PGRUNBOOK_TEST_PAIR="+pair+" ")
}

func between(from, n uint64) []uint64 {
	list := make([]uint64, n)
	for i := range list {
		list[i] = from + uint64(i)
	}
	return list
}

// needed is what must have happened in 25 histories or more.
var needed = [][]string{
	{"point"},
	{"kill", "term"},
	{"backend", "reset"},
	{"commit lost", "commit unanswered"},
	{"flip"},
	{"flip back"},
	{"stop"},
	{"truncate"},
	{"swap"},
	{"other key"},
	{"savepoint undone"},
	{"rolled back"},
	{"replica role"},
	{"prepare"},
	{"commit prepared"},
	{"new partition"},
	{"attach"},
	{"detach and attach"},
	{"detach"},
	{"drop partition"},
	{"create table"},
	{"create table, write it later"},
	{"create table, drop it later"},
	{"create sequence"},
	{"create sequence, drop it later"},
	{"create function and view, replace them later"},
	{"create index and check, drop them later"},
	{"create index and check"},
	{"enum value"},
	{"add column", "add column, constant", "change type"},
}

// neededOfMany are second parts, which the flip may outrun in one history.
var neededOfMany = [][]string{
	{"create table, write it later: the second part"},
	{"create table, drop it later: the second part"},
	{"create sequence, drop it later: the second part"},
	{"create function and view, replace them later: the second part"},
	{"create index and check, drop them later: the second part"},
	{"detach: the second part"},
}

// TestHistories plays random migrations.
func TestHistories(t *testing.T) {
	items := chosen(t)
	fired := playAll(t, items)
	if len(items) < 25 {
		return
	}
	for _, need := range slices.Concat(needed, cond(len(items) < 100, nil, neededOfMany)) {
		n := 0
		for _, kind := range need {
			n += fired[kind]
		}
		if n == 0 {
			t.Errorf("no history had %s: %v", strings.Join(need, " or "), fired)
		}
	}
	for _, k := range kinds {
		if fired["ran: "+k.name] == 0 {
			t.Errorf("no statement on a table of the kind %q succeeded; %d were refused", k.name, fired["refused: "+k.name])
		}
	}
}

// TestPast plays the histories that are kept: those that once found a fault, and one that shows that a stored history plays.
func TestPast(t *testing.T) {
	files, err := filepath.Glob("testdata/past/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var items []item
	for _, path := range files {
		h, err := readHistory(path)
		if err != nil {
			t.Fatal(err)
		}
		if h.Note == "" {
			t.Errorf("%s does not say why it is kept", path)
		}
		items = append(items, item{strings.TrimSuffix(filepath.Base(path), ".json"), pairing() + "PGRUNBOOK_HISTORY_FILE=" + path, h})
	}
	if len(items) == 0 {
		t.Fatal("testdata/past has no history")
	}
	playAll(t, items)
}

var shrinking sync.Mutex // one at a time: a failure is cut alone

func playAll(t *testing.T, items []item) map[string]int {
	var mu sync.Mutex
	fired := map[string]int{}
	var took time.Duration
	var commits [2]int64
	slots := make(chan struct{}, 2)
	if len(items) == 0 {
		return fired
	}
	before := spent(t)
	t.Run("all", func(t *testing.T) {
		for _, it := range items {
			t.Run(it.name, func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				r := play(it.name, it.h)
				mu.Lock()
				for kind, n := range r.fired {
					fired[kind] += n
				}
				took += r.took
				commits[0], commits[1] = commits[0]+r.commit[0], commits[1]+r.commit[1]
				mu.Unlock()
				for _, m := range r.missed {
					t.Logf("did not happen: %s", m)
				}
				if r.failed() {
					report(t, it, r)
				}
			})
		}
	})
	t.Logf("%d histories, %s each, %d and %d commits on the sides; %s; happened: %v", len(items), (took / time.Duration(len(items))).Round(time.Millisecond), commits[0], commits[1], spent(t).since(before, len(items)), fired)
	return fired
}

// report plays a failed history again to see how often it fails, cuts it, and prints what is left.
func report(t *testing.T, it item, r result) {
	shrinking.Lock()
	defer shrinking.Unlock()
	t.Errorf("%s (%s):\n%s\n\nrepeat it: %s go test ./internal/histories -count 1 -run TestHistories\n\nwhat the program said:\n%s",
		it.name, it.h.size(), strings.Join(r.errs, "\n"), it.repeat, spoken(r.said))
	limit := cond(soak(), 10*time.Minute, 90*time.Second)
	if s := os.Getenv("PGRUNBOOK_HISTORY_SHRINK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		limit = d
	}
	if limit == 0 {
		return
	}
	deadline := time.Now().Add(limit)
	const again = 3
	failed := 0
	for i := 0; i < again && time.Now().Before(deadline); i++ {
		failed += cond(play(it.name+"_again", it.h).failed(), 1, 0)
	}
	t.Logf("played %d times more, it failed %d times", again, failed)
	if failed == 0 {
		return // too rare to cut
	}
	tries := cond(failed == again, 1, 3)
	var last result
	small := shrink(it.h, deadline, func(h History) bool {
		for range tries {
			if r := play(it.name+"_cut", h); r.failed() {
				last = r
				return true
			}
		}
		return false
	})
	t.Logf("cut to %s, which fails with:\n%s\n\n%s\nas a file (testdata/past):\n%s", small.size(), strings.Join(last.errs, "\n"), small, small.json())
}

// spoken drops the plans from what the program said, and its figures of progress.
func spoken(said string) string {
	var out strings.Builder
	plan := false
	for line := range strings.Lines(said) {
		switch {
		case strings.HasPrefix(line, "Plan of "):
			plan = true
		case strings.HasPrefix(line, "--- ") || len(line) > 9 && line[2] == ':' && line[5] == ':':
			plan = false
		}
		if !plan {
			out.WriteString(line)
		}
	}
	return out.String()
}

// TestPoints holds the failpoints that the generator knows to the source.
func TestPoints(t *testing.T) {
	var source strings.Builder
	for _, root := range []string{"../../engine", "../../steps", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") {
				return err
			}
			text, err := os.ReadFile(path)
			source.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, names := range points {
		for _, name := range names {
			bare, _, _ := strings.Cut(name, "@")
			if !strings.Contains(source.String(), `failpoint.Hit("`+bare+`")`) {
				t.Errorf("the source has no failpoint %s", bare)
			}
		}
	}
}
