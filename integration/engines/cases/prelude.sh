# Read before each case. A case is what a user types; it fails with its first
# command that does. engine is docker or podman, $n a name of the case's own:
# whatever begins with it is removed afterwards. $dir is a directory, $net a number
# for a subnet, $testprog the test program.
set -eu

eq() { [ "$1" = "$2" ] || { printf 'got:  %s\nwant: %s\n' "$1" "$2" >&2; exit 1; }; }
has() { case $1 in *"$2"*) ;; *) printf 'got:  %s\nwant it to hold: %s\n' "$1" "$2" >&2; exit 1 ;; esac; }
hasnt() { case $1 in *"$2"*) printf 'got:  %s\nmay not hold: %s\n' "$1" "$2" >&2; exit 1 ;; esac; }

# code N command... : the command's exit code is N, a pattern. Its output is in $out.
code() {
	want=$1
	shift
	rc=0
	out=$("$@" 2>&1) || rc=$?
	[[ $rc == $want ]] || { printf '%s\nexit code %s, want %s: %s\n' "$out" "$rc" "$want" "$*" >&2; exit 1; }
}

# soon command... : true within 30 s. Engines tell some things to nobody who
# does not ask.
soon() {
	for _ in $(seq 150); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.2
	done
	echo "not within 30 s: $*" >&2
	"$@"
}
is() { [ "$("${@:2}")" = "$1" ]; }
field() { engine inspect -f "{{$2}}" "$1"; }

# Of containerd's tasks.
has_status() { engine task ls | grep -q "^$1 .* $2"; }
has_no_task() { ! engine task ls -q | grep -q "^$1\$"; }
