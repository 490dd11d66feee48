package histories_test

import (
	"math/rand/v2"
	"slices"
	"strings"
)

// points are failpoints that every migration passes; TestPoints holds them to the source.
var points = map[string][]string{
	"apply": {
		"schema.begun", "schema.restored", "schema.gated", "capture.objects", "capture.triggers@2", "capture.captured", "load.claimed@2", "load.copied@1", "load.marked@2", "load.committed@2",
		"load.scrubbing@2", "load.scrubbed@1", "load.keyed@2", "load.following@1", "pass.begun@1", "pass.read@1", "pass.staged@1", "pass.applied@1", "pass.marked@1", "pass.committed@1", "pass.forgotten@1", "pass.staged@2",
		"pass.committed@2", "constraints.indexes", "constraints.rest", "compare.opened@1", "compare.compared@2", "reverse.captured", "gate.armed@2", "freeze.prepared", "freeze.held", "freeze.proved", "freeze.passed",
		"freeze.sequences", "freeze.decided", "freeze.between", "freeze.flipped", "freeze.owned",
	},
	"rollback": {"pass.staged@1", "pass.committed@1", "freeze.prepared", "freeze.held", "freeze.passed", "freeze.decided", "freeze.between", "freeze.flipped", "rollback.flipped", "rollback.reopened@1"},
	"finish":   {"gate.untriggered@1", "finish.walked", "finish.target"},
	"abort":    {"abort.disarmed", "abort.source", "abort.schema"},
}

// faultKinds, with how often each is chosen.
var faultKinds = []string{"point", "point", "kill", "kill", "kill", "term", "backend", "backend", "reset", "reset", "commit lost", "commit unanswered", "commit unanswered", "stop", "restart"}

// untils are the steps that apply may stop at.
var untils = []string{"schema", "capture", "copy", "catch_up", "constraints", "verify", "reverse", "arm"}

// generate makes the history of a seed.
func generate(seed uint64, source int, own bool) History {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 20)), merge: source >= 15}
	h := History{Seed: seed, Own: own, Carry: g.IntN(4) > 0, NoVerify: g.IntN(10) == 0, List: g.pick(sorted(listKinds)...)}
	shapes := make([]shape, 2+g.IntN(4))
	h.Tables = make([]Table, len(shapes))
	for i := range shapes {
		t := &h.Tables[i]
		k := kinds[g.IntN(len(kinds))]
		if i == 0 && seed%3 == 0 { // its partitions change, see below
			k = kind{"range partitions", rangeTree}
		}
		t.Name, t.Of, t.Kind = f("t%d", i+1), k.name, k.name
		shapes[i] = k.make(g, t)
	}
	for range 2 + g.IntN(3) {
		h.Writers = append(h.Writers, g.writer(shapes))
	}
	if h.List == "deferrable" || slices.ContainsFunc(h.Tables, func(t Table) bool { return strings.Contains(t.Kind, "deferrable") }) {
		for _, w := range h.Writers { // nobody holds the replica role to such a key: the source itself would have rows twice
			for i := range w.Ops {
				w.Ops[i].Replica = false
			}
		}
	}
	h.Commands = g.commands()
	if g.IntN(4) > 0 {
		g.faults(&h)
	}
	var sure []Event
	switch turn := int(seed / 3); seed % 3 {
	case 0:
		list := treeEvents(g, &h.Tables[0], "h."+h.Tables[0].Name)
		sure = list[turn%len(list):][:1]
	case 1:
		list := schemaEvents()
		sure = list[turn%len(list):][:1]
	}
	h.Carry = h.Carry || len(sure) > 0
	if n := g.IntN(2); n > 0 || len(sure) > 0 {
		g.events(&h, shapes, n, sure)
	}
	for i := range h.Commands {
		if c := &h.Commands[i]; h.NoVerify && c.Args == "apply --until verify" {
			c.Args = "apply --until constraints" // there is no step of that name
		}
	}
	return h
}

func (g *gen) writer(shapes []shape) Writer {
	var w Writer
	replica := g.IntN(8) == 0
	for range 8 + g.IntN(16) {
		op := Op{Think: 15 + g.IntN(60), Replica: replica, End: "commit"}
		for range g.IntN(4) {
			sub := cond(g.IntN(2) == 0, "keep", cond(g.IntN(4) == 0, "undo", ""))
			for i, s := range shapes[g.IntN(len(shapes))].change(g) {
				s.Sub = cond(sub == "undo" && i > 0, "keep", sub)
				if strings.HasPrefix(s.SQL, "TRUNCATE") {
					s.Sub = sub
				}
				op.Body = append(op.Body, s)
			}
		}
		for k := range listCount {
			if g.IntN(3) == 0 {
				op.Lists = append(op.Lists, k)
			}
		}
		if len(op.Lists) > 0 && g.IntN(2) == 0 {
			op.Transfer = &Transfer{From: g.IntN(accounts), To: g.IntN(accounts), Amount: 1 + g.IntN(50)}
		}
		switch n := g.IntN(24); {
		case n < 3:
			op.End = "rollback"
		case n == 3:
			op.End = "prepared"
		case n == 4:
			op.End = "prepared rollback"
		}
		w.Ops = append(w.Ops, op)
	}
	return w
}

// commands is one way through a migration.
func (g *gen) commands() []Command {
	until := f("apply --until %s", untils[g.IntN(len(untils))])
	var args []string
	switch g.IntN(9) {
	case 0, 1, 2:
		args = []string{"apply"}
	case 3:
		args = []string{until, "apply"}
	case 4:
		args = []string{"apply --until verify", "verify", "apply"}
	case 5:
		args = []string{"apply --until arm", "rehearse", "apply"}
	case 6:
		args = []string{until, "abort --drop-target", "apply"}
	case 7:
		args = []string{"apply", "rollback", "apply"}
	case 8:
		args = []string{"apply", "rollback"}
	}
	if args[len(args)-1] == "apply" && g.IntN(4) > 0 {
		args = append(args, "finish --now")
	}
	list := make([]Command, len(args))
	for i, a := range args {
		list[i].Args = a
	}
	return list
}

// faults are few in one history: each makes the program begin again, which is what a history costs. A
// later attempt has one only where an earlier one may have failed by one.
func (g *gen) faults(h *History) {
	for range 2 + g.IntN(4) {
		c := &h.Commands[g.IntN(len(h.Commands))]
		verb := strings.Fields(c.Args)[0]
		lasts := cond(verb == "apply" || verb == "rollback", 4000, 800)
		ft := Fault{Kind: g.pick(faultKinds...), Try: g.IntN(1 + len(c.Faults)), After: g.IntN(lasts), Side: g.IntN(2), N: g.IntN(30)}
		names := points[verb]
		switch {
		case ft.Kind == "point" && len(names) == 0:
			ft.Kind = "kill"
		case ft.Kind == "point":
			ft.Point = names[g.IntN(len(names))]
		case ft.Kind == "restart" && !h.Own:
			ft.Kind = "kill"
		case ft.Kind == "restart": // never the side that the command may open: the comparison reads there
			ft.Side = cond(verb == "rollback", 1, 0)
		}
		c.Faults = append(c.Faults, ft)
	}
}

// events happen to the source while it takes writes, in an apply that comes after a stop at a later
// step than capture. Two seeds of three have a sure one: few seeds shall meet each kind.
func (g *gen) events(h *History, shapes []shape, n int, sure []Event) {
	at := slices.IndexFunc(h.Commands, func(c Command) bool { return c.Args == "apply" })
	if at == 0 || !slices.ContainsFunc(untils[1:], func(step string) bool { return h.Commands[at-1].Args == "apply --until "+step }) {
		h.Commands = slices.Insert(h.Commands, at, Command{Args: "apply --until " + g.pick("capture", "copy", "catch_up", "verify", "arm")})
		at++
	}
	for _, e := range sure {
		e.After = g.IntN(500) // before the source is closed
		h.Commands[at].Events = append(h.Commands[at].Events, e)
	}
	used := map[int]bool{0: len(sure) > 0}
	for range n * (1 + g.IntN(2)) {
		i := g.IntN(len(shapes))
		if used[i] {
			continue
		}
		used[i] = true
		for _, e := range shapes[i].events(g) {
			e.After = g.IntN(2000)
			if !h.Carry && slices.Contains(carriedKinds, e.Kind) {
				if e.Kind != "add column" && e.Kind != "add column, constant" {
					continue // nothing takes it back
				}
				e.Undo = []string{strings.SplitN(e.SQL[0], " ADD COLUMN", 2)[0] + " DROP COLUMN extra"}
			}
			h.Commands[at].Events = append(h.Commands[at].Events, e)
		}
	}
}

// carriedKinds are events that stop the run unless the runbook says carry.
var carriedKinds = []string{
	"add column", "add column, constant", "add column, volatile", "set default", "change type", "new partition", "attach",
	"detach", "drop partition", "create table", "create table, write it later", "create table, drop it later", "create sequence", "create sequence, drop it later", "enum value",
	"create function and view, replace them later", "create index and check, drop them later", "create index and check",
}
