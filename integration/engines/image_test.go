//go:build integration

package engines

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// importImage makes the image box, with busybox and the test program.
func (e *engine) importImage(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	tree, layer := filepath.Join(dir, "tree"), filepath.Join(dir, "layer.tar")
	e.root.shell(t, fmt.Sprintf(`set -eu
mkdir %[1]s
cd %[1]s
mkdir -p bin etc tmp proc sys dev root var
cp "$(command -v busybox)" bin/busybox
chroot . /bin/busybox --install -s /bin
cp %[2]s bin/testprog
chmod 1777 tmp
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >etc/passwd
printf 'root:x:0:\nuser:x:1000:\n' >etc/group
printf image >etc/marker
tar -cf %[3]s .
`, tree, testprog, layer))
	if !e.archive {
		e.root.shell(t, fmt.Sprintf("%sengine import -c 'CMD sh' -c 'ENV PATH=/bin' - box <%s", e.prelude, layer))
		return
	}
	archive := filepath.Join(dir, "archive")
	if err := writeOCILayout(archive, layer, "box"); err != nil {
		t.Fatal(err)
	}
	e.root.shell(t, fmt.Sprintf("%scd %s\ntar -cf ../box.tar .\nengine image import --local ../box.tar || engine image import ../box.tar", e.prelude, archive))
}

// writeOCILayout writes an image with one layer, a tar file, in the layout of the OCI image
// specification.
func writeOCILayout(dir, layer, name string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	type object = map[string]any
	var failure error
	// blob writes content to a file and returns its descriptor.
	blob := func(mediaType string, content []byte) object {
		sum := sha256.Sum256(content)
		digest := hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(blobs, digest), content, 0o644); err != nil {
			failure = err
		}
		return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	encode := func(value any) []byte {
		text, err := json.Marshal(value)
		if err != nil {
			failure = err
		}
		return text
	}
	content, err := os.ReadFile(layer)
	if err != nil {
		return err
	}
	layerBlob := blob("application/vnd.oci.image.layer.v1.tar", content)
	config := blob("application/vnd.oci.image.config.v1+json", encode(object{
		"architecture": "amd64", "os": "linux",
		"config": object{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []any{layerBlob["digest"]}},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", encode(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []any{layerBlob},
	}))
	manifest["annotations"] = object{"io.containerd.image.name": name}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": encode(object{"schemaVersion": 2, "manifests": []any{manifest}}),
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			return err
		}
	}
	return failure
}
