#!/bin/bash
# Builds the engines that are newer than any Debian's, from the module proxy.
#   engines.sh DIRECTORY
set -euo pipefail

containerd=v2.4.2
moby=v2.0.0-beta.24 # Docker 29
runc=v1.5.2         # it asks for a time namespace, which Debian's runc knows nothing of
out=$(realpath -m "$1")
stamp="$containerd $moby $runc"
[ "$(cat "$out/.done" 2>/dev/null)" != "$stamp" ] || exit 0
"$(dirname "$0")/deps.sh" build-runc >&2
echo "building containerd $containerd, dockerd $moby and runc $runc in $out: some minutes" >&2
cd / # not in husk's module
export GOBIN=$out GOFLAGS= CGO_ENABLED=0
go install -trimpath -ldflags '-s -w' github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@$containerd
go install -trimpath -ldflags '-s -w' github.com/moby/moby/v2/cmd/{dockerd,docker-proxy}@$moby
CGO_ENABLED=1 go install -trimpath -ldflags '-s -w' -tags seccomp github.com/opencontainers/runc@$runc
echo "$stamp" >"$out/.done"
