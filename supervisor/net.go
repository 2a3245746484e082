package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/agent/protocol"
	"github.com/huskvm/husk/network"
	"github.com/huskvm/husk/specconv"
	"github.com/huskvm/husk/state"
)

// openTaps makes a tap for each interface that the namespace has by now, and n
// at least, for those that engines put there between create and start, or later.
func openTaps(n int) ([]*network.Tap, error) {
	found, skipped, err := network.Scan()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(skipped, func(s network.Skipped) bool { return s.Tap }) {
		// Two machines with one address on one interface: neither would work.
		return nil, errors.New("the network namespace has another container's virtual machine on it: containers that share one network (--network container:ID, pods) are not supported yet")
	}
	return network.OpenTaps(max(n, len(found)))
}

// wiring is which interface of the container's network namespace each tap is
// joined with. The verbs' lock guards it.
type wiring struct {
	joined map[int]*joint // by the interface's index
	given  *protocol.NetworkRequest
	leftOf map[string]bool // interfaces the user was told of

	// unsettled: something has changed that the guest does not know of yet. It
	// needs no lock.
	unsettled atomic.Bool
}

type joint struct {
	tap   *network.Tap
	links *network.Links
}

// errNoCard is for an interface more than the guest has network cards.
var errNoCard = errors.New("no network card of the guest is free")

// joinNetwork makes the guest's interfaces those of the container's network
// namespace. It runs at start, because some engines wire the namespace between
// create and start, and when something has changed there. Where the guest
// refuses, what is new on the host's side is undone.
func (s *supervisor) joinNetwork(ctx context.Context) error {
	if len(s.taps) == 0 {
		return nil
	}
	found, skipped, err := network.Scan()
	if err != nil {
		return err
	}
	s.noteSkipped(skipped)
	req := &protocol.NetworkRequest{ContainerId: s.container.ID}
	joined, fresh := map[int]*joint{}, []*joint{}
	var missing error
	for _, f := range found {
		j := s.wiring.joined[f.Index]
		if j == nil {
			tap := s.freeTap(joined)
			if tap == nil {
				missing = fmt.Errorf("join network: interface %s: %w: set the annotation %s or the setting nics to %d or more",
					f.Name, errNoCard, specconv.AnnotationNICs, len(found))
				continue
			}
			j = &joint{tap: tap}
		}
		joined[f.Index] = j
		req.Interfaces = append(req.Interfaces, f.ToProto(j.tap.MAC))
		sources := network.SourcesOf(&f, found, s.boot.Walls.Forging)
		if j.links == nil {
			if j.links, err = network.Join(network.Pair{Interface: f, Tap: j.tap, Sources: sources}); err != nil {
				return errors.Join(err, undo(fresh))
			}
			fresh = append(fresh, j)
		} else if err := j.links.Restrict(j.tap, sources); err != nil {
			return errors.Join(err, undo(fresh))
		}
	}
	if !proto.Equal(req, s.wiring.given) && (len(req.Interfaces) > 0 || s.wiring.given != nil) {
		if _, err := s.agent.Control().Network(ctx, req); err != nil {
			if uerr := undo(fresh); uerr != nil {
				s.log.WithError(uerr).Warn("undo network")
			}
			return fmt.Errorf("join network: %w", err)
		}
		s.wiring.given = req
	}
	for index, j := range s.wiring.joined {
		if joined[index] == nil {
			err = errors.Join(err, j.links.Undo())
		}
	}
	s.wiring.joined = joined
	return errors.Join(missing, err)
}

// freeTap is one that is joined with nothing, before and from now on.
func (s *supervisor) freeTap(next map[int]*joint) *network.Tap {
	for _, t := range s.taps {
		uses := func(j *joint) bool { return j.tap == t }
		if !slices.ContainsFunc(slices.Collect(maps.Values(s.wiring.joined)), uses) &&
			!slices.ContainsFunc(slices.Collect(maps.Values(next)), uses) {
			return t
		}
	}
	return nil
}

func undo(joints []*joint) error {
	var errs []error
	for _, j := range joints {
		errs = append(errs, j.links.Undo())
	}
	return errors.Join(errs...)
}

func (s *supervisor) noteSkipped(skipped []network.Skipped) {
	for _, skip := range skipped {
		if skip.Expected || s.wiring.leftOf[skip.Name] {
			continue
		}
		if s.wiring.leftOf == nil {
			s.wiring.leftOf = map[string]bool{}
		}
		s.wiring.leftOf[skip.Name] = true
		s.log.WithField("interface", skip.Name).WithField("reason", skip.Reason).Warn("interface left out of the guest")
	}
}

// settleTime is how long the namespace has to be left alone before the guest
// learns of a change: an engine makes an interface in several steps, and half of
// one is of no use.
const settleTime = 100 * time.Millisecond

// followNetwork keeps the guest's interfaces those of the namespace as engines
// connect the running container to networks and disconnect it.
func (s *supervisor) followNetwork(changed <-chan struct{}) {
	for range changed {
		s.wiring.unsettled.Store(true)
		for settled := false; !settled; {
			select {
			case <-changed:
				s.wiring.unsettled.Store(true) // an exec may have settled what was before
			case <-time.After(settleTime):
				settled = true
			}
		}
		s.rejoinNetwork()
	}
}

// settleNetwork does not wait for the namespace to be left alone: a process that is
// started after the container has been connected finds the network.
func (s *supervisor) settleNetwork() {
	if s.wiring.unsettled.Load() {
		s.rejoinNetwork()
	}
}

// rejoinNetwork logs what fails: nobody has asked for it.
func (s *supervisor) rejoinNetwork() {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if s.status() == state.Stopped {
		return
	}
	s.wiring.unsettled.Store(false) // what changes from here on sets it again
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := s.joinNetwork(ctx)
	if err == nil {
		err = s.relayNames(ctx)
	}
	if err != nil {
		s.log.WithError(err).Warn("follow the network namespace")
	}
}
