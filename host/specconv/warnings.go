package specconv

import "fmt"

// warnings collects one sentence for each field that is dropped or means
// something else than on the host.
type warnings []string

func (w *warnings) addf(field, format string, args ...any) {
	*w = append(*w, fmt.Sprintf("%s: %s", field, fmt.Sprintf(format, args...)))
}

// dropIf records that field was set and is not honoured.
func (w *warnings) dropIf(set bool, field, why string) {
	if set {
		w.addf(field, "dropped: %s", why)
	}
}
