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
	// P95 is what 95 of 100 samples are no worse than: no longer than a time, no
	// less than a rate.
	P95 float64 `json:"p95"`
	// Taken is every sample, in the order in which they were taken.
	Taken []float64 `json:"taken"`
	// Floor is what bare QEMU takes for the same, where that was measured.
	Floor string `json:"floor,omitempty"`
}

type results struct {
	rows  []row
	notes []string // below the table
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

// percentile of sorted values, by the nearest rank.
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

// print writes a Markdown table: each figure beside runc's and its floor's.
func (r *results) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| figure\t| of\t| p50\t| p95\t| unit\t| n\t| x runc\t| x floor\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, row := range r.grouped() {
		fmt.Fprintf(t, "| %s\t| %s\t| %.1f\t| %.1f\t| %s\t| %d\t| %s\t| %s\t|\n", row.Figure, row.Subject, row.P50, row.P95,
			row.Unit, row.Samples, ratio(row, r.find(row.Figure, "runc")), ratio(row, r.find(row.Floor, floorName)))
	}
	_ = t.Flush()
	for _, note := range r.notes {
		fmt.Fprintf(w, "\n%s\n", note)
	}
}

func ratio(a row, b *row) string {
	if b == nil || b.P50 == 0 || a.Subject == b.Subject {
		return ""
	}
	return fmt.Sprintf("%.2f", a.P50/b.P50)
}

// grouped is the rows with those of one figure together, in the order in which
// the figures were first taken.
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
