package specconv

import (
	"fmt"
	"reflect"
	"strings"
)

// maxQuoted bounds how much of a wrong value an error repeats, in bytes, because an error is
// one line for a person.
const maxQuoted = 200

// fieldErrorf returns an error about one field of config.json, named by its JSON path.
func fieldErrorf(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
}

// quote formats a value of any length like %q and cuts it.
func quote[S ~string](v S) string {
	s := string(v)
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q...", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}

// index returns the path of an element of a list.
func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// key returns the path of an element of a map.
func key(field, k string) string { return fmt.Sprintf("%s[%s]", field, quote(k)) }

// checkNUL refuses a NUL byte in any string of v. The strings become C strings in system calls,
// where a NUL would cut them without an error. It uses reflection, so that new fields of the
// spec are checked too.
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
