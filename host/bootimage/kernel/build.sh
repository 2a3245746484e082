#!/bin/bash
# Builds the trimmed guest kernel from Debian's linux-source package: tinyconfig
# and husk.config. Takes about ten minutes on two processors.
#   build.sh DIRECTORY      makes DIRECTORY/vmlinuz; work stays in DIRECTORY/tree
# KERNEL_SOURCE names a tarball to use instead of the package's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../integration/setup/apt.sh"

out=$(mkdir -p "$1" && cd "$1" && pwd)
source=${KERNEL_SOURCE:-}
if [ -z "$source" ]; then
	apt_lists
	package=$(apt-cache depends linux-source | awk '/Depends: linux-source-/ {print $2; exit}')
	for need in "$package" flex bison bc libelf-dev xz-utils gcc make cpio kmod; do
		dpkg -s "$need" >/dev/null 2>&1 && continue
		need_root "installing $need"
		apt_get install -q -y --no-install-recommends "$need"
	done
	source=/usr/src/$package.tar.xz
fi

tree=$out/tree
if [ ! -e "$tree/Makefile" ] || [ "$(cat "$tree/.source" 2>/dev/null)" != "$source" ]; then
	rm -rf "$tree" # plain files only
	mkdir -p "$tree"
	echo "unpacking $source"
	tar -C "$tree" --strip-components=1 -xf "$source"
	echo "$source" >"$tree/.source"
fi

make -s -C "$tree" tinyconfig >/dev/null
"$tree/scripts/kconfig/merge_config.sh" -m -O "$tree" "$tree/.config" "$here/husk.config" >/dev/null
make -s -C "$tree" olddefconfig 2>/dev/null
# olddefconfig drops what lacks a dependency without a word.
missing=0
while read -r line; do
	if ! grep -qxF "$line" "$tree/.config"; then
		echo "lost: $line" >&2
		missing=1
	fi
done < <(grep '^CONFIG_' "$here/husk.config")
[ "$missing" = 0 ] || exit 1

make -s -C "$tree" -j"$(nproc)" bzImage
cp "$tree/arch/x86/boot/bzImage" "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
echo "guest kernel: $out/vmlinuz, $(stat -c %s "$out/vmlinuz") bytes; make install-kernel puts it into /usr/lib/husk"
