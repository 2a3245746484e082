package supervisor

import (
	"context"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/protocol"
)

// followSize sends the terminal's size to the guest, and returns a function that does so again
// when it changes; nil without a terminal.
func followSize(pty *stdio.PTY, agent protocol.AgentService, containerID string, log *logrus.Logger) func() {
	if pty == nil {
		return nil
	}
	follow := func() {
		rows, columns, err := pty.Size()
		if err == nil && rows > 0 && columns > 0 {
			err = resize(context.Background(), agent, containerID, protocol.InitProcess, rows, columns)
		}
		if err != nil {
			log.WithError(err).Warn("follow window size")
		}
	}
	follow()
	return follow
}

func resize(ctx context.Context, agent protocol.AgentService, containerID, processID string, rows, columns uint32) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := agent.Resize(ctx, &protocol.ResizeRequest{
		ContainerId: containerID, ProcessId: processID, Rows: rows, Columns: columns,
	})
	return err
}
