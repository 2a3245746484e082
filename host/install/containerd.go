package install

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/BurntSushi/toml"
)

// Lines around the text that husk appends to containerd's config.toml. A table can be appended
// whatever the file contains, so the rest is not changed.
const (
	blockBegin = "# Written by husk install containerd; husk uninstall containerd removes it.\n"
	blockEnd   = "# End of what husk install wrote.\n"
)

// criPlugin is the table of the CRI plugin, by the version of the file. Version 1 is older than
// any containerd that runs shim v2 runtimes by default.
var criPlugin = map[int64]string{
	2: "io.containerd.grpc.v1.cri",
	3: "io.containerd.cri.v1.runtime",
}

func addContainerd(old []byte, binary string) ([]byte, error) {
	rest, err := withoutBlock(old)
	if err != nil {
		return nil, err
	}
	var have struct {
		Version int64 `toml:"version"`
		Plugins map[string]struct {
			Containerd struct {
				Runtimes map[string]any `toml:"runtimes"`
			} `toml:"containerd"`
		} `toml:"plugins"`
	}
	if _, err := toml.Decode(string(rest), &have); err != nil {
		return nil, fmt.Errorf("is not what containerd reads: %w", err)
	}
	if len(bytes.TrimSpace(rest)) == 0 {
		have.Version = 2 // containerd 2 reads this version as well
		rest = append(rest, "version = 2\n"...)
	}
	plugin := criPlugin[have.Version]
	if plugin == "" {
		return nil, fmt.Errorf("has version %d: husk knows 2 and 3 (containerd config migrate rewrites an old one)", have.Version)
	}
	if have.Plugins[plugin].Containerd.Runtimes["husk"] != nil {
		return nil, errors.New("has a runtime husk that husk install did not write: remove it first")
	}
	if !bytes.HasSuffix(rest, []byte("\n")) {
		rest = append(rest, '\n')
	}
	table := fmt.Sprintf("plugins.%q.containerd.runtimes.husk", plugin)
	return fmt.Appendf(rest, "\n%s[%s]\n  runtime_type = \"io.containerd.runc.v2\"\n  [%s.options]\n    BinaryName = %q\n%s",
		blockBegin, table, table, binary, blockEnd), nil
}

func removeContainerd(old []byte) ([]byte, error) { return withoutBlock(old) }

// withoutBlock returns the text without what husk has added.
func withoutBlock(text []byte) ([]byte, error) {
	before, after, found := bytes.Cut(text, []byte(blockBegin))
	if !found {
		return bytes.Clone(text), nil
	}
	_, after, found = bytes.Cut(after, []byte(blockEnd))
	if !found {
		return nil, fmt.Errorf("has the line %q but not %q: remove by hand what husk install wrote", blockBegin, blockEnd)
	}
	// husk has also added the empty line before it.
	before = bytes.TrimSuffix(before, []byte("\n"))
	return append(bytes.Clone(before), after...), nil
}
