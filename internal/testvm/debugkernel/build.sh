#!/bin/sh
# Usage: build.sh DIRECTORY
# Builds DIRECTORY/bzImage from Debian's source of Linux 6.1 with the options of
# config, which lies beside this. It needs the packages linux-source-6.1 in the pinned
# version, dwarves, flex, bison, bc, libelf-dev, libssl-dev and gcc.
set -e
[ -n "$1" ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
version=6.1.192-2
here=$(cd "$(dirname "$0")" && pwd)
have=$(dpkg-query -W -f '${Version}' linux-source-6.1)
[ "$have" = "$version" ] || { echo "linux-source-6.1 is $have, not $version" >&2; exit 1; }
mkdir -p "$1"
cd "$1"
[ -d linux-source-6.1 ] || tar xf /usr/src/linux-source-6.1.tar.xz
cd linux-source-6.1
make -s tinyconfig
scripts/kconfig/merge_config.sh -m .config "$here/config"
make -s olddefconfig
make -j "${JOBS:-2}" KBUILD_BUILD_USER=debug KBUILD_BUILD_HOST=debug bzImage
cp arch/x86/boot/bzImage ..
