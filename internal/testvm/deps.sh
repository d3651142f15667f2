#!/bin/sh
# Installs the Debian packages that building and booting guests takes. Does nothing,
# and needs neither root nor a network, when they are there.
set -u
packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
PATH=$PATH:/usr/sbin:/sbin
need qemu-system-x86_64 qemu-system-x86
need qemu-system-aarch64 qemu-system-arm
need debootstrap debootstrap
need mke2fs e2fsprogs
need gcc gcc
need xz xz-utils
need cpio cpio
need unshare util-linux
need tar tar
need makedumpfile makedumpfile
need depmod kmod
need dpkg-deb dpkg
[ -e /usr/include/stdio.h ] || packages="$packages libc6-dev"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages="$packages debian-archive-keyring"
[ -d /etc/ssl/certs ] || packages="$packages ca-certificates"

fail() { echo "deps: $*" >&2; exit 1; }

if [ -n "$packages" ]; then
	command -v apt-get >/dev/null || fail "these Debian packages are needed and there is no apt-get:$packages"
	[ "$(id -u)" = 0 ] || fail "these packages are missing; run as root: apt-get install$packages"
	echo "deps: installing$packages" >&2
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp) || fail "no room for a temporary file"
	trap 'rm -f "$log"' EXIT
	apt-get update -q >"$log" 2>&1
	# shellcheck disable=SC2086
	apt-get install -q -y --no-install-recommends $packages >"$log" 2>&1 ||
		fail "apt-get could not install$packages: $(grep '^E:' "$log" | head -n 1)"
fi
command -v go >/dev/null || fail "Go 1.26 or newer is needed: see go.dev/doc/install"
