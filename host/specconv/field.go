package specconv

import (
	"fmt"
	"reflect"
	"strings"
)

// maxQuoted is how much of a wrong value an error repeats, in bytes: an error is
// one line that a person reads.
const maxQuoted = 200

// fieldErrorf is an error about one field of config.json, named by its JSON path.
func fieldErrorf(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
}

// quote is %q of a value that may be of any length.
func quote[S ~string](v S) string {
	s := string(v)
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q...", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}

// index names one element of a list.
func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// key names one element of a map.
func key(field, k string) string { return fmt.Sprintf("%s[%s]", field, quote(k)) }

// checkNUL refuses a NUL byte in any string of v: every one of them ends as a C
// string in a system call, where the NUL would cut it short without an error.
// It walks by reflection so that a field added to the spec is not forgotten.
func checkNUL(v reflect.Value, field string) error {
	switch v.Kind() {
	case reflect.String:
		if strings.ContainsRune(v.String(), 0) {
			return fieldErrorf(field, "%s contains a NUL byte", quote(v.String()))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return checkNUL(v.Elem(), field)
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := checkNUL(v.Index(i), index(field, i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if err := checkNUL(it.Key(), field); err != nil {
				return err
			}
			if err := checkNUL(it.Value(), key(field, it.Key().String())); err != nil {
				return err
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			sub := field
			if name != "" { // an embedded struct has no name of its own
				sub = strings.TrimPrefix(field+"."+name, ".")
			}
			if err := checkNUL(v.Field(i), sub); err != nil {
				return err
			}
		}
	}
	return nil
}
