#!/bin/bash
# Runs every fuzz target for a time: fuzz.sh 5s [flags of go test]. FUZZ=regexp picks.
set -euo pipefail
time=$1
shift
failed=0
while read -r pkg dir; do
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | cut -d' ' -f2); do
		[[ $target =~ ${FUZZ:-.} ]] || continue
		if out=$(go test "$pkg" -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$@" 2>&1); then
			echo "$pkg $target: $(grep -oE 'execs: [0-9]+' <<<"$out" | tail -1)"
		# A worker that is in the middle of an input when the time is up is an error to
		# Go's fuzzer, though nothing was found: golang.org/issue/75804.
		elif grep -q 'context deadline exceeded' <<<"$out" && ! grep -qE 'Failing input|panic:|_test\.go:[0-9]+:' <<<"$out"; then
			echo "$pkg $target: nothing found when the time was up"
		else
			echo "$out"
			failed=1
		fi
	done
done < <(go list -f '{{.ImportPath}} {{.Dir}}' ./...)
exit $failed
