package install

import (
	"bytes"
	"errors"
	"fmt"
)

// podman reads every file in containers.conf.d, so husk has a file of its own there.
const podmanHeader = "# Written by husk install podman; husk uninstall podman removes it.\n"

func addPodman(old []byte, binary string) ([]byte, error) {
	if err := checkPodman(old); err != nil {
		return nil, err
	}
	return fmt.Appendf([]byte(podmanHeader), `[engine]
# The runtimes whose error messages podman reads from their log; the others are its
# own default.
runtime_supports_json = ["crun", "runc", "kata", "runsc", "youki", "krun", "husk"]

[engine.runtimes]
husk = [%q]
`, binary), nil
}

func removePodman(old []byte) ([]byte, error) { return nil, checkPodman(old) }

func checkPodman(old []byte) error {
	if len(bytes.TrimSpace(old)) > 0 && !bytes.HasPrefix(old, []byte(podmanHeader)) {
		return errors.New("was not written by husk install: move it away first")
	}
	return nil
}
