package testpg

// CutAfter resets, once, the connection on which the n-th byte from now on goes
// in a direction; the bytes before it are delivered.
func (p *Proxy) CutAfter(d Direction, n int64) { p.set(func(f *faults) { f.cutAfter[d] = n }) }

// CutEvery resets every connection, of those that come and those that are open, when it has carried as many bytes, of both
// directions together, as next draws for it; what comes before them is delivered. nil lifts it. Calls of next follow one
// another.
func (p *Proxy) CutEvery(next func() int64) { p.set(func(f *faults) { f.cutEvery = next }) }

// CutCommit cuts one COMMIT (or END), after letting skip others pass.
func (p *Proxy) CutCommit(how CommitCut, skip int) {
	p.set(func(f *faults) { f.commit, f.skip = how, skip })
}

// takeCommit says what to do with a COMMIT that is about to be forwarded.
func (p *Proxy) takeCommit() CommitCut {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f.commit == 0 {
		return 0
	}
	if p.f.skip > 0 {
		p.f.skip--
		return 0
	}
	how := p.f.commit
	p.f.commit = 0
	return how
}

// takeBytes returns how many of n bytes of a connection may pass before a cut, and whether
// the cut falls among them.
func (p *Proxy) takeBytes(c *proxyConn, d Direction, n int) (pass int, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pass = take(&p.f.cutAfter[d], n); pass >= 0 {
		p.fired[FaultCutBytes]++
		return pass, true
	}
	if p.f.cutEvery == nil {
		c.left = 0
		return n, false
	}
	if c.left == 0 {
		c.left = p.f.cutEvery()
	}
	if pass = take(&c.left, n); pass >= 0 {
		p.fired[FaultCutEvery]++
		return pass, true
	}
	return n, false
}

// take counts n bytes off what is left before a cut, 0 for none, and gives how many of them pass
// where it falls among them, else -1.
func take(left *int64, n int) (pass int) {
	switch {
	case *left == 0:
		return -1
	case int64(n) < *left:
		*left -= int64(n)
		return -1
	}
	pass = int(*left)
	*left = 0
	return pass
}
