package bootimage

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// The whole directory is embedded rather than the one file, so that husk
// compiles where make has not put the agent there yet.
//
//go:embed all:embedded
var embedded embed.FS

// Agent returns the agent's executable: static, linux/amd64, to be the guest's
// /init. The error says how to build husk with one when this husk has none.
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
