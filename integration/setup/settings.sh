#!/bin/bash
# Prints the settings with which husk uses a kernel that is not installed.
#   settings.sh KERNEL_DIRECTORY [CACHE_DIRECTORY]
set -euo pipefail
kernel=$(realpath "$1")
vmlinuz=$(ls "$kernel"/boot/vmlinuz-* | tail -1)
cat <<TOML
kernel = "$vmlinuz"
modules = "$kernel/lib/modules/${vmlinuz##*/vmlinuz-}"
TOML
[ -z "${2:-}" ] || echo "cache = \"$(realpath -m "$2")\""
