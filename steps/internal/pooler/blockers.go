package pooler

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Blocker is a client that keeps a server connection, so that PAUSE waits for it.
type Blocker struct {
	User        string
	Application string // empty on releases before 1.18
	Client      string // address and port
	ServerPID   string // backend on the server; empty on releases that do not tell
	Since       string // its last request, in the pooler's words
}

// String is one line for a person.
func (b Blocker) String() string {
	s := "client " + b.Client + " (" + b.User
	if b.Application != "" {
		s += ", " + b.Application
	}
	s += ")"
	if b.ServerPID != "" && b.ServerPID != "0" {
		s += " on server process " + b.ServerPID
	}
	if b.Since != "" {
		s += ", last request at " + b.Since
	}
	return s
}

// Blockers lists the clients of the database that hold a server connection now.
func (p *Pooler) Blockers(ctx context.Context) ([]Blocker, error) {
	servers, err := p.ask(ctx, "SHOW SERVERS")
	if err != nil {
		return nil, p.fail("looking at who keeps", engine.ClassFailed, p.reachHint(), err)
	}
	clients, err := p.ask(ctx, "SHOW CLIENTS")
	if err != nil {
		return nil, p.fail("looking at who keeps", engine.ClassFailed, p.reachHint(), err)
	}
	byLink := map[string]record{}
	for _, c := range clients {
		byLink[c["ptr"]] = c
	}
	var blockers []Blocker
	for _, s := range servers {
		c, linked := byLink[s["link"]]
		if s["database"] != p.cfg.Database || s["link"] == "" || !linked {
			continue
		}
		blockers = append(blockers, Blocker{
			User: c["user"], Application: c["application_name"], Client: c["addr"] + ":" + c["port"],
			ServerPID: s["remote_pid"], Since: c["request_time"],
		})
	}
	return blockers, nil
}

// inTheWay names the first few.
func inTheWay(blockers []Blocker) string {
	const few = 5
	if len(blockers) == 0 {
		return ""
	}
	var lines []string
	for _, b := range blockers[:min(few, len(blockers))] {
		lines = append(lines, b.String())
	}
	more := ""
	if len(blockers) > few {
		more = fmt.Sprintf(" and %d more", len(blockers)-few)
	}
	return "; in the way: " + strings.Join(lines, "; ") + more
}
