// Package sources links all memory sources in, so that vmi.Open knows them:
//
//	import _ "github.com/ovmigrate/ovmigrate/vmi/sources"
//
// A program that needs only some imports their packages instead.
package sources

import (
	_ "github.com/ovmigrate/ovmigrate/vmi/avml"
	_ "github.com/ovmigrate/ovmigrate/vmi/elfcore"
	_ "github.com/ovmigrate/ovmigrate/vmi/kcore"
	_ "github.com/ovmigrate/ovmigrate/vmi/kdump"
	_ "github.com/ovmigrate/ovmigrate/vmi/lime"
	_ "github.com/ovmigrate/ovmigrate/vmi/qemu"
	_ "github.com/ovmigrate/ovmigrate/vmi/ramfile"
	_ "github.com/ovmigrate/ovmigrate/vmi/snapshot"
)
