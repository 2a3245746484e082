package bootimage

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// The whole directory is embedded and not just the file, so that husk compiles before make has
// put the agent there.
//
//go:embed all:embedded
var embedded embed.FS

// Agent returns the agent's executable, static and for linux/amd64, which becomes the guest's
// /init. If this husk was built without an agent, the error says how to build one.
func Agent() ([]byte, error) {
	b, err := embedded.ReadFile("embedded/agent")
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(b) == 0:
		return nil, errors.New("this husk was built without its guest agent: build it with make")
	case err != nil:
		return nil, fmt.Errorf("read embedded agent: %w", err)
	}
	return b, nil
}
