package faults_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestF01ChainOfKills kills ten runners of one migration, each at a random hit of whatever boundary
// comes then: the later ones continue what was continued before.
func TestF01ChainOfKills(t *testing.T) {
	random := seed(t)
	for range cond(soak(), 40, 1) {
		s := random.Uint64()
		t.Run("", func(t *testing.T) {
			t.Parallel()
			random := randomOf(s)
			r := newRig(t)
			for kills := 0; kills < cond(soak(), 10, 4); {
				// Short of the end: hits of a whole walk are some hundreds, of a resumed one fewer.
				if r.killed(fmt.Sprintf("*@%d", 1+random.IntN(60)), applyArgs...) {
					kills++
					continue
				}
				r.moved(0, 1) // done before the last: the rest of the chain goes back
				break
			}
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.turn(1)
			for range cond(soak(), 5, 2) {
				if !r.killed(fmt.Sprintf("*@%d", 1+random.IntN(20)), rollbackArgs...) {
					break
				}
			}
			r.finally(rollbackArgs...)
			r.moved(1, 0)
			r.balance(r.source)
		})
	}
}

// TestF01F02RandomKills kills the runner at uniformly random times, over migrations that go there, back
// and there again. The clients never stop.
func TestF01F02RandomKills(t *testing.T) {
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
