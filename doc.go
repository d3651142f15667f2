// Package ovmigrate looks into Linux guests from outside their virtual machine and
// moves their processes out: no agent, no helper process, no change to the guest.
//
// The module has four layers; imports go down only:
//
//	checkpoint  process → CRIU image set        criuimg  CRIU image files
//	signal      stop, continue, kill, freeze
//	kernel      typed Linux objects in guest memory
//	vmi         guest-physical memory, live or dumped
//
// Start with vmi.Open and kernel.Open.
package ovmigrate
