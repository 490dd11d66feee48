package faults_test

import (
	"syscall"
	"testing"
	"time"
)

// TestRandomKills kills the runner at uniformly random times, over migrations that go there, back
// and there again. The clients never stop.
func TestRandomKills(t *testing.T) {
	random := seed(t)
	total := cond(soak(), 2000, 60)
	const rigs = 2
	for range rigs {
		s := random.Uint64()
		t.Run("", func(t *testing.T) {
			t.Parallel()
			kills, runs := 0, 0
			for kills < total/rigs {
				kills += randomKills(t, s+uint64(runs), total/rigs-kills)
				runs++
			}
			t.Logf("%d kills in %d migrations", kills, runs)
		})
	}
}

// randomKills plays one migration with up to most kills and says how many there were.
func randomKills(t *testing.T, s uint64, most int) (kills int) {
	t.Run("", func(t *testing.T) {
		random := randomOf(s)
		r := newRig(t)
		until := func(args []string) {
			for range most + 20 {
				p := r.start("", args...)
				if kills < most {
					time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
					p.signal(syscall.SIGKILL)
				}
				o := p.end()
				switch {
				case o.signal == syscall.SIGKILL:
					kills++
				case o.code == 0:
					return
				default:
					r.acceptable(o)
				}
			}
			t.Fatalf("%s does not get done", args)
		}
		until(applyArgs)
		r.moved(0, 1)
		r.writing(1)
		r.turn(1)
		until(rollbackArgs)
		r.moved(1, 0)
		r.turn(0)
		until(applyArgs)
		r.moved(0, 1)
		until(finishArgs)
		r.balance(r.target)
	})
	return kills
}
