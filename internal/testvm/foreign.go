package testvm

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// foreignPackages are those of a guest of another architecture: it is looked at only,
// and its processor is slow.
var foreignPackages = []string{
	"busybox-static", "iproute2", "kmod", "linux-image-cloud-arm64", "procps", "psmisc", "python3",
}

// foreignDirs are directories that the scripts of base-files would have made.
var foreignDirs = []string{"media", "mnt", "opt", "srv"}

// foreignBase makes the root file system of another architecture, whose programs do
// not run here: packages are unpacked, and the little that their scripts would have
// done to a system that runs nothing of its own is done instead. debootstrap fetches
// them and checks their signatures. The programs in C are left out.
func (b *builder) foreignBase(ctx context.Context, tmp, root string) error {
	const script = `set -e
debootstrap --foreign --variant=minbase --arch="$4" --include="$3" "$1" "$5"
mkdir -p "$2/usr/bin" "$2/usr/sbin" "$2/usr/lib"
for l in bin sbin lib; do ln -s usr/$l "$2/$l"; done
for deb in "$5"/var/cache/apt/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar --keep-directory-symlink -C "$2" -xpf -
done
cd "$2"
for f in passwd group; do cp usr/share/base-passwd/$f.master etc/$f; done
[ -e bin/sh ] || ln -s dash bin/sh
[ -e bin/awk ] || ln -s mawk bin/awk
for k in lib/modules/*; do depmod -b . "${k##*/}"; done
rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info
tar --one-file-system -cf ../base.tar .`
	err := b.run(ctx, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "bash", "-o", "pipefail", "-c", script, "sh",
		b.release(), root, strings.Join(b.Packages, ","), b.Arch, filepath.Join(tmp, "packages"))
	if err != nil {
		return fmt.Errorf("debootstrap by %w", err)
	}
	return nil
}
