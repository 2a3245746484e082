#!/bin/bash
# Makes a busybox bundle and runs it with husk: host and guest side by side.
#   demo.sh HUSK KERNEL_DIRECTORY    the directory is filled where this machine's own kernel will not do
set -euo pipefail
husk=$(realpath "$1")
kernel=$2

[ "$(id -u)" = 0 ] || { echo "the demo needs root: sudo make demo" >&2; exit 1; }
bundle=$(mktemp -d)
# The bundle holds plain files only once husk has ended; if anything were still
# mounted there, removing would reach through it.
trap 'grep -q " $bundle" /proc/self/mountinfo || rm -rf "$bundle"' EXIT
mkdir -p "$bundle"/rootfs/{bin,dev,etc,proc,sys,tmp}
cp "$(command -v busybox)" "$bundle/rootfs/bin/busybox"
for applet in sh uname cat grep head ps; do
	ln -s busybox "$bundle/rootfs/bin/$applet"
done
if "$husk" check --json | grep -q '"kernel": *"[0-9]'; then
	: >"$bundle/husk.toml" # the distribution's own
else
	"$(dirname "$0")/kernel.sh" "$kernel"
	"$(dirname "$0")/settings.sh" "$kernel" >"$bundle/husk.toml"
fi
"$husk" spec --bundle "$bundle"
# The spec asks for a terminal and a shell; the demo wants one command's output.
sed -i -e 's/"terminal": true/"terminal": false/' \
	-e 's|^\([[:space:]]*\)"sh"$|\1"sh", "-c", "uname -a; grep -m1 MemTotal /proc/meminfo"|' "$bundle/config.json"

run() { "$husk" --config "$bundle/husk.toml" run --bundle "$bundle" "demo-$$-$1"; }
echo
echo "host:      $(uname -a)"
began=$(date +%s%N)
first=$(run 1)
first_ms=$((($(date +%s%N) - began) / 1000000))
echo "container: $(head -1 <<<"$first")"
echo
began=$(date +%s%N)
run 2 >/dev/null
second_ms=$((($(date +%s%N) - began) / 1000000))
echo "the first run took $first_ms ms (it unpacks the kernel and makes the initramfs, once), the second $second_ms ms"
if [ "$(uname -r)" = "$(awk '{print $3}' <<<"$(head -1 <<<"$first")")" ]; then
	echo "the container shows the host's kernel: it did not run in a virtual machine" >&2
	exit 1
fi
