package specconv

import (
	"bytes"
	"encoding/json"
	"strings"
)

// checkTwice refuses a field that occurs twice in one object, because parsers differ in which
// value they use. It ignores case, as Go's decoder does. b is valid JSON.
func checkTwice(b []byte) error {
	return fieldsOnce(json.NewDecoder(bytes.NewReader(b)), "")
}

func fieldsOnce(d *json.Decoder, field string) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if err := fieldsOnce(d, index(field, i)); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return err
			}
			key, _ := name.(string)
			path := strings.TrimPrefix(field+"."+key, ".")
			folded := foldIn(field, key)
			if seen[folded] {
				return fieldErrorf(path, "is given twice")
			}
			seen[folded] = true
			if err := fieldsOnce(d, path); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = d.Token() // the closing bracket
	return err
}

// foldIn folds case in names of fields, and not in keys of maps.
func foldIn(object, key string) string {
	switch object {
	case "annotations", "linux.sysctl", "linux.resources.unified", "linux.resources.rdma", "linux.netDevices", "linux.timeOffsets":
		return key
	}
	return strings.ToLower(key)
}
