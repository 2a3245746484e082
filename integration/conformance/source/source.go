// Package source fetches a test suite that is no part of husk.
package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Download fetches a version of a Go module through the module proxy, and returns its read-only
// directory in the module cache. An empty sum is not checked.
func Download(ctx context.Context, module, version, sum string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@"+version)
	cmd.Dir = os.TempDir() // outside husk's own module
	out, runErr := cmd.Output()
	var got struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(out, &got); err != nil {
		return "", errors.Join(runErr, err)
	}
	switch {
	case got.Error != "":
		return "", errors.New(got.Error)
	case runErr != nil:
		return "", runErr
	case sum != "" && got.Sum != sum:
		return "", fmt.Errorf("its sum is %s, not %s", got.Sum, sum)
	}
	return got.Dir, nil
}

// Copy makes a writable copy, because the module cache is read-only.
func Copy(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	// A module's archive has only a list in the vendor directory, with which go refuses to
	// build.
	return os.RemoveAll(filepath.Join(to, "vendor"))
}
