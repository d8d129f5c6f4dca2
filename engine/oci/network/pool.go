package network

import (
	"os"
	"sync"
)

// pool has empty namespaces made in advance: making one takes about as long as all else of a container's
// start. Each is given away once and never comes back.
type pool struct {
	ready chan *os.File
	take  chan struct{} // one was taken
	stop  chan struct{}
	done  sync.WaitGroup
}

func newPool(size int) *pool {
	p := &pool{ready: make(chan *os.File, size), take: make(chan struct{}, 1), stop: make(chan struct{})}
	p.done.Go(p.fill)
	return p
}

// get gives a namespace away: one made in advance, else a new one.
func (p *pool) get() (*os.File, error) {
	select {
	case ns := <-p.ready:
		select {
		case p.take <- struct{}{}:
		default:
		}
		return ns, nil
	default:
		return newNamespace()
	}
}

// fill keeps the pool full. A failure leaves it as it is: get meets the error itself.
func (p *pool) fill() {
	for {
		for len(p.ready) < cap(p.ready) {
			ns, err := newNamespace()
			if err != nil {
				break
			}
			select {
			case <-p.stop:
				_ = ns.Close()
				return
			case p.ready <- ns:
			}
		}
		select {
		case <-p.stop:
			return
		case <-p.take:
		}
	}
}

func (p *pool) close() {
	close(p.stop)
	p.done.Wait()
	for {
		select {
		case ns := <-p.ready:
			_ = ns.Close()
		default:
			return
		}
	}
}
