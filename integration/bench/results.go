package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one figure of one subject.
type row struct {
	Figure  string  `json:"figure"`
	Subject string  `json:"subject"`
	Unit    string  `json:"unit"`
	Samples int     `json:"samples"`
	P50     float64 `json:"p50"`
	// P95: 95 of 100 samples are at least as good, that is, not longer for a time and not lower
	// for a rate.
	P95 float64 `json:"p95"`
	// Taken has all samples in the order in which they were taken.
	Taken []float64 `json:"taken"`
	// Floor is the subject with what bare QEMU needs for the same, if it was measured.
	Floor string `json:"floor,omitempty"`
}

type results struct {
	rows  []row
	notes []string // printed below the table
}

// durations adds a figure in milliseconds.
func (r *results) durations(figure, subject, floor string, samples []time.Duration) {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = float64(s) / float64(time.Millisecond)
	}
	r.values(figure, subject, "ms", floor, values)
}

func (r *results) values(figure, subject, unit, floor string, values []float64) {
	taken := slices.Clone(values)
	slices.Sort(values)
	bad := 95
	if strings.HasSuffix(unit, "/s") {
		bad = 5
	}
	r.rows = append(r.rows, row{
		Figure: figure, Subject: subject, Unit: unit, Floor: floor, Samples: len(values),
		P50: percentile(values, 50), P95: percentile(values, bad), Taken: taken,
	})
}

// percentile returns a percentile of sorted values, by the nearest rank.
func percentile(sorted []float64, p int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1]
}

func (r *results) find(figure, subject string) *row {
	for i := range r.rows {
		if r.rows[i].Figure == figure && r.rows[i].Subject == subject {
			return &r.rows[i]
		}
	}
	return nil
}

// columns are the subjects that are printed side by side.
var columns = []string{"husk", "runc", "crun", "runsc", floorName}

// print writes Markdown: a line for each figure, with "p50 (p95)" of each subject and the ratio
// of husk's p50 to runc's and to the floor's. Subjects that are no runtimes follow in a table
// of their own.
func (r *results) print(w io.Writer) {
	var shown []string
	for _, c := range columns {
		if slices.ContainsFunc(r.rows, func(row row) bool { return row.Subject == c }) {
			shown = append(shown, c)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	if len(shown) > 0 {
		fmt.Fprintf(t, "| p50 (p95)\t| unit\t| %s\t| husk / runc\t| husk / floor\t|\n", strings.Join(shown, "\t| "))
		fmt.Fprintf(t, "|---\t%s|\n", strings.Repeat("|---\t", len(shown)+3))
	}
	done := map[string]bool{}
	for _, row := range r.rows {
		if done[row.Figure] || !slices.Contains(columns, row.Subject) {
			continue
		}
		done[row.Figure] = true
		fmt.Fprintf(t, "| %s\t| %s\t", row.Figure, row.Unit)
		for _, c := range shown {
			fmt.Fprintf(t, "| %s\t", r.find(row.Figure, c))
		}
		husk := r.find(row.Figure, "husk")
		var floor string
		if husk != nil {
			floor = husk.Floor
		}
		fmt.Fprintf(t, "| %s\t| %s\t|\n", ratio(husk, r.find(row.Figure, "runc")), ratio(husk, r.find(floor, floorName)))
	}
	_ = t.Flush()
	r.printOthers(w)
	for _, note := range r.notes {
		fmt.Fprintf(w, "\n%s\n", note)
	}
}

// printOthers writes the figures that have subjects of their own.
func (r *results) printOthers(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	began := false
	for _, row := range r.grouped() {
		if slices.Contains(columns, row.Subject) {
			continue
		}
		if !began {
			fmt.Fprintln(t, "\n| figure\t| of\t| unit\t| p50 (p95)\t|\n|---\t|---\t|---\t|---\t|")
			began = true
		}
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t|\n", row.Figure, row.Subject, row.Unit, &row)
	}
	_ = t.Flush()
}

// String returns a figure as the table shows it; "" if it was not taken.
func (r *row) String() string {
	switch {
	case r == nil:
		return ""
	case r.Samples == 1:
		return short(r.P50)
	default:
		return fmt.Sprintf("%s (%s)", short(r.P50), short(r.P95))
	}
}

// short formats a number with about three digits.
func short(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func ratio(a, b *row) string {
	if a == nil || b == nil || b.P50 == 0 {
		return ""
	}
	v := a.P50 / b.P50
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// grouped returns the rows ordered by figure, in the order in which the figures were first
// taken.
func (r *results) grouped() []row {
	first := map[string]int{}
	for i, row := range r.rows {
		if _, seen := first[row.Figure]; !seen {
			first[row.Figure] = i
		}
	}
	rows := slices.Clone(r.rows)
	slices.SortStableFunc(rows, func(a, b row) int { return first[a.Figure] - first[b.Figure] })
	return rows
}
