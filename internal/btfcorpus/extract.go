package btfcorpus

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
)

// FromPackage returns the whole BTF of the kernel in a Debian package file.
func FromPackage(deb string) (release string, btf []byte, err error) {
	release, image, err := vmlinuz(deb)
	if err != nil {
		return "", nil, err
	}
	kernel, err := unpack(image)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", release, err)
	}
	btf, err = find(kernel)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", release, err)
	}
	return release, btf, nil
}

// vmlinuz takes boot/vmlinuz-RELEASE, or lib/modules/RELEASE/vmlinuz, out of a package.
func vmlinuz(deb string) (release string, image []byte, err error) {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	defer func() {
		_ = out.Close() // what follows the kernel is not wanted
		_ = cmd.Wait()
	}()
	t := tar.NewReader(out)
	for {
		h, err := t.Next()
		if err != nil {
			return "", nil, fmt.Errorf("%s: looking for the kernel: %w", deb, err)
		}
		dir, name := path.Split(h.Name)
		release, ok := strings.CutPrefix(name, "vmlinuz-")
		if name == "vmlinuz" {
			release, ok = path.Base(dir), true
		}
		if ok && h.Typeflag == tar.TypeReg {
			image, err = io.ReadAll(t)
			return release, image, err
		}
	}
}

// unpack returns the kernel proper. Formats: Documentation/arch/x86/boot.rst,
// Documentation/arch/arm64/booting.rst, drivers/firmware/efi/libstub/zboot.lds.
func unpack(image []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(image) < 0x400 {
		return nil, errors.New("too short to be a kernel")
	}
	switch {
	case string(image[0x202:0x206]) == "HdrS":
		at := (int(image[0x1f1])+1)*512 + int(le.Uint32(image[0x248:]))
		n := int(le.Uint32(image[0x24c:]))
		if at < 0 || n < 4 || at+n > len(image) {
			return nil, errors.New("bzImage: payload outside the file")
		}
		return decompress(image[at : at+n])
	case string(image[4:8]) == "zimg":
		at, n := int(le.Uint32(image[8:])), int(le.Uint32(image[12:]))
		if at < 0 || n < 4 || at+n > len(image) {
			return nil, errors.New("EFI zboot: payload outside the file")
		}
		return decompress(image[at : at+n])
	case string(image[56:60]) == "ARM\x64":
		return image, nil
	}
	return decompress(image)
}

// decompress runs the program for what b is compressed with. Behind the payload
// comes its length, which all of them complain about after having written all.
func decompress(b []byte) ([]byte, error) {
	var cmd *exec.Cmd
	switch {
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		cmd = exec.Command("gzip", "-dc")
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		cmd = exec.Command("xz", "-dc", "--single-stream")
	case bytes.HasPrefix(b, []byte{0x5d, 0, 0}):
		cmd = exec.Command("xz", "--format=lzma", "-dc")
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		cmd = exec.Command("zstd", "-dc")
	case bytes.HasPrefix(b, []byte{0x02, 0x21, 0x4c, 0x18}):
		cmd = exec.Command("lz4", "-dc")
	default:
		return nil, fmt.Errorf("unknown compression, begins with % x", b[:8])
	}
	var errout bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(b), &errout
	out, err := cmd.Output()
	if err != nil && len(out) < len(b) {
		return nil, fmt.Errorf("%s: %w: %s", cmd.Args[0], err, bytes.TrimSpace(errout.Bytes()))
	}
	return out, nil
}

// find returns the largest blob in a kernel that has the header of BTF.
func find(kernel []byte) ([]byte, error) {
	le := binary.LittleEndian
	var best []byte
	for at := 0; ; at++ {
		i := bytes.Index(kernel[at:], []byte{0x9f, 0xeb, 1, 0})
		if i < 0 {
			break
		}
		at += i
		b := kernel[at:]
		if len(b) < 24 {
			break
		}
		hdr, types, strOff, strLen := uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[12:])), uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
		end := hdr + strOff + strLen
		if hdr < 24 || hdr > 256 || strOff != types || strLen == 0 || end > uint64(len(b)) || b[hdr+strOff] != 0 || b[end-1] != 0 {
			continue
		}
		if int(end) > len(best) {
			best = b[:end]
		}
	}
	if best == nil {
		return nil, errors.New("it has no BTF")
	}
	return best, nil
}
