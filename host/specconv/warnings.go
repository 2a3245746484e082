package specconv

import "fmt"

// Dropped is a field of the spec that has no effect.
type Dropped struct {
	Field string // such as linux.resources.blockIO
	Why   string
}

// String returns the warning.
func (d Dropped) String() string { return fmt.Sprintf("%s: dropped: %s", d.Field, d.Why) }

// warnings collects a sentence for each field that is dropped or means something else than on
// the host.
type warnings []string

func (w *warnings) addf(field, format string, args ...any) {
	*w = append(*w, fmt.Sprintf("%s: %s", field, fmt.Sprintf(format, args...)))
}

// dropIf notes that a field is set and has no effect.
func (w *warnings) dropIf(set bool, field, why string) {
	if set {
		w.drop(Dropped{Field: field, Why: why})
	}
}

func (w *warnings) drop(all ...Dropped) {
	for _, d := range all {
		*w = append(*w, d.String())
	}
}
