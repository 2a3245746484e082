package install

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"
	"github.com/tidwall/pretty"
	"github.com/tidwall/sjson"
)

// daemon.json is edited as text and not decoded and encoded, so that the administrator's order
// of keys stays.

func addDocker(old []byte, binary string) ([]byte, error) {
	if len(bytes.TrimSpace(old)) == 0 {
		old = []byte("{}")
	}
	if err := checkDaemonJSON(old); err != nil {
		return nil, err
	}
	if gjson.GetBytes(old, "runtimes.husk.path").String() == binary {
		return old, nil
	}
	text, err := sjson.SetBytes(old, "runtimes.husk.path", binary)
	if err != nil {
		return nil, fmt.Errorf("add runtimes.husk: %w", err)
	}
	return indent(text), nil
}

func removeDocker(old []byte) ([]byte, error) {
	if len(bytes.TrimSpace(old)) == 0 {
		return old, nil
	}
	if err := checkDaemonJSON(old); err != nil {
		return nil, err
	}
	if !gjson.GetBytes(old, "runtimes.husk").Exists() {
		return old, nil
	}
	if gjson.GetBytes(old, "default-runtime").String() == "husk" {
		return nil, errors.New(`husk is the "default-runtime": name another first, or containers without --runtime cannot start`)
	}
	path := "runtimes.husk"
	if len(gjson.GetBytes(old, "runtimes").Map()) == 1 {
		path = "runtimes"
	}
	text, err := sjson.DeleteBytes(old, path)
	if err != nil {
		return nil, fmt.Errorf("remove %s: %w", path, err)
	}
	return indent(text), nil
}

func checkDaemonJSON(text []byte) error {
	if !gjson.ValidBytes(text) || !gjson.ParseBytes(text).IsObject() {
		return errors.New("is not a JSON object: correct it first")
	}
	if r := gjson.GetBytes(text, "runtimes"); r.Exists() && !r.IsObject() {
		return errors.New(`"runtimes" is not an object: correct it first`)
	}
	return nil
}

func indent(text []byte) []byte {
	return pretty.PrettyOptions(text, &pretty.Options{Indent: "  ", Width: 100})
}
