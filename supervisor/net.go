package supervisor

import (
	"context"
	"fmt"

	"github.com/huskvm/husk/agent/protocol"
	"github.com/huskvm/husk/network"
	"github.com/huskvm/husk/specconv"
)

// openTaps makes a tap for each interface that the namespace has by now, and n
// at least, for those that engines put there between create and start.
func openTaps(n int) ([]*network.Tap, error) {
	found, _, err := network.Scan()
	if err != nil {
		return nil, err
	}
	return network.OpenTaps(max(n, len(found)))
}

// joinNetwork joins each interface in the container's network namespace with
// one of the guest's cards. It runs at start, because some engines wire the
// namespace between create and start. Where the guest refuses, the host's side
// is undone.
func (s *supervisor) joinNetwork(ctx context.Context) error {
	if len(s.taps) == 0 {
		return nil
	}
	found, skipped, err := network.Scan()
	if err != nil {
		return err
	}
	for _, skip := range skipped {
		if !skip.Expected {
			s.log.WithField("interface", skip.Name).WithField("reason", skip.Reason).Warn("interface left out of the guest")
		}
	}
	if len(found) > len(s.taps) {
		return fmt.Errorf("join network: %d interfaces in the network namespace but the guest has %d network cards: set the annotation %s or the setting nics to %d",
			len(found), len(s.taps), specconv.AnnotationNICs, len(found))
	}
	if len(found) == 0 {
		return nil // the guest's card stays where no container sees it
	}
	var pairs []network.Pair
	req := &protocol.NetworkRequest{ContainerId: s.container.ID}
	for i := range found {
		pairs = append(pairs, network.Pair{Interface: found[i], Tap: s.taps[i]})
		req.Interfaces = append(req.Interfaces, found[i].ToProto(s.taps[i].MAC))
	}
	links, err := network.Join(pairs...)
	if err != nil {
		return err
	}
	if _, err := s.agent.Control().Network(ctx, req); err != nil {
		if uerr := links.Undo(); uerr != nil {
			s.log.WithError(uerr).Warn("undo network")
		}
		return fmt.Errorf("join network: %w", err)
	}
	return nil
}
