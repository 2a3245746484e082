package bootimage

import (
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows progress. The zero value shows nothing.
type bar struct{ b *progressbar.ProgressBar }

// newBar returns a bar that draws on w if w is a terminal.
func newBar(w io.Writer, what string) *bar {
	f, ok := w.(*os.File)
	if !ok || f == nil || !term.IsTerminal(int(f.Fd())) {
		return &bar{}
	}
	return &bar{progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(f),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(30),
		progressbar.OptionClearOnFinish(),
	)}
}

// add adds n bytes of a total. An error of the terminal is ignored.
func (b *bar) add(n int, of int64) {
	if b.b == nil {
		return
	}
	if b.b.GetMax64() != of {
		b.b.ChangeMax64(of)
	}
	_ = b.b.Add(n)
}

// finish removes the bar from the terminal.
func (b *bar) finish() {
	if b.b != nil {
		_ = b.b.Finish()
	}
}
