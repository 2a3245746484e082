package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/protocol"
)

// maxResolvConf bounds what is read of a resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// openResolvConf keeps what is mounted at /etc/resolv.conf: engines write it
// again, in place, when they connect the container to another network.
func (s *supervisor) openResolvConf() error {
	for _, share := range s.boot.Plan.Shares {
		if share.Destination != "/etc/resolv.conf" || share.IsDir {
			continue
		}
		f, err := os.Open(share.HostPath)
		if err != nil {
			return fmt.Errorf("open resolv.conf: %w", err)
		}
		if s.resolvConf != nil {
			s.resolvConf.Close() // a later mount covers an earlier one
		}
		s.resolvConf = f
	}
	return nil
}

// relayNames lets the guest ask the engine's resolver, once that is what the
// container's resolv.conf names.
func (s *supervisor) relayNames(ctx context.Context) error {
	if s.namesRelayed {
		return s.hearAnswers()
	}
	if s.resolvConf == nil {
		return nil
	}
	text := make([]byte, maxResolvConf)
	n, err := s.resolvConf.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read resolv.conf: %w", err)
	}
	if !network.UsesEngineResolver(string(text[:n])) {
		return nil
	}
	stream, err := s.agent.Stream(ctx, protocol.StreamHeader{Kind: protocol.StreamNames, ContainerID: s.container.ID})
	if err != nil {
		return fmt.Errorf("relay names to the resolver at %s: %w", protocol.ResolverAddress, err)
	}
	s.namesRelayed = true
	go func() { //nolint:contextcheck // it outlives the call
		defer stream.Close()
		if err := network.RelayNames(context.Background(), stream); err != nil {
			s.log.WithError(err).Warn("relay names")
		}
	}()
	return s.hearAnswers()
}

// hearAnswers lets the engine's resolver ask name servers of the world, too.
func (s *supervisor) hearAnswers() error {
	if err := s.wiring.policy.reservePorts(); err != nil {
		return err
	}
	for _, j := range s.wiring.joined {
		if err := j.links.HearAnswers(); err != nil {
			return err
		}
	}
	return nil
}
