#!/bin/sh
# Usage: debugdeb.sh DIRECTORY
# Puts the vmlinux with debug information of bookworm's cloud kernel into DIRECTORY,
# as the host's apt has it: the host runs bookworm, as the guest does.
set -e
mkdir -p "$1"
cd "$1"
release=${RELEASE:-$(file -L "${OVM_CACHE:-$HOME/.cache/ovmigrate}"/image-bookworm-*/vmlinuz | sed -n 's/.*version \([^ ]*\).*/\1/p' | head -n 1)}
[ -f "vmlinux-$release" ] && exit 0
apt-get -q download "linux-image-$release-dbg"
dpkg-deb --fsys-tarfile "linux-image-$release-dbg"_*.deb | tar -xO "./usr/lib/debug/boot/vmlinux-$release" >"vmlinux-$release.tmp"
mv "vmlinux-$release.tmp" "vmlinux-$release"
rm -f "linux-image-$release-dbg"_*.deb
