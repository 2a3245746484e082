package options

import (
	"flag"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestRegister(t *testing.T) {
	o := Options{Suite: "v1", Build: "build/x"}
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	o.Register(flags, "a suite", "")
	if err := flags.Parse([]string{"-husk", "/bin/husk", "-only", "a.*"}); err != nil {
		t.Fatal(err)
	}
	if o.Husk != "/bin/husk" || o.Only != "a.*" || o.Suite != "v1" || o.Build != "build/x" {
		t.Errorf("got %+v", o)
	}
}

func TestHuskArgv(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		want    int
	}{
		"without settings": {Options{Husk: "husk"}, 1},
		"with settings":    {Options{Husk: "husk", Config: "husk.toml"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			argv, err := c.options.HuskArgv()
			if err != nil || len(argv) != c.want || !filepath.IsAbs(argv[0]) || !filepath.IsAbs(argv[len(argv)-1]) {
				t.Errorf("%q, %v", argv, err)
			}
		})
	}
}

// TestWriteWrapper: words of the command and arguments of the script arrive as they are.
func TestWriteWrapper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wrapper")
	if err := WriteWrapper(path, []string{"printf", "%s,", "it's", "a b"}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "c d", "$e").Output()
	if err != nil || string(out) != "it's,a b,c d,$e," {
		t.Errorf("%q, %v", out, err)
	}
}
