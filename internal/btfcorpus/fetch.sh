#!/bin/sh
# Usage: fetch.sh DIRECTORY
# Downloads Debian's current kernels into DIRECTORY/RELEASE, all that
# kernel/testdata/btf is made from: by apt, with lists and settings of its own in
# DIRECTORY/apt. The mirror is $MIRROR, or that of this machine's own sources.
set -e
dir=$(mkdir -p "$1" && cd "$1" && pwd)
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | sort -u | grep -v security | head -n 1)}
for suite in bullseye bookworm trixie sid; do
	for arch in amd64 arm64; do
		own=$dir/apt/$suite-$arch
		mkdir -p "$own/lists/partial" "$own/cache/archives/partial" "$dir/$suite"
		: >"$own/status"
		echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$own/sources.list"
		apt() {
			command=$1
			shift
			"$command" -o Dir::State::Lists="$own/lists" -o Dir::State::status="$own/status" -o Dir::Cache="$own/cache" \
				-o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts=/dev/null \
				-o APT::Sandbox::User=root -o APT::Architecture="$arch" -o APT::Architectures::="$arch" "$@"
		}
		apt apt-get -qq update
		cd "$dir/$suite"
		for flavour in cloud- "" rt-; do
			image=$(apt apt-cache depends "linux-image-$flavour$arch" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
			# Newer releases have the kernel itself in a package of its own.
			binary=$(apt apt-cache depends "$image" | sed -n 's/.*Depends: \(linux-binary-.*\)/\1/p' | head -n 1)
			apt apt-get -qq download "${binary:-$image}"
		done
	done
done
