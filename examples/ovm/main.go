// Command ovm looks into a running Linux guest from outside its virtual machine:
// it shows the guest's processes and kernel objects, stops and kills processes,
// and saves them as CRIU image sets, with nothing of its own inside the guest.
//
//	ovm -g qmp:/run/vm.sock ps
//	ovm -g qmp:/run/vm.sock checkpoint 1234 -D images
//
// It exits with 0 on success, 1 on failure with one line on standard error, and 2
// if it was called wrongly.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
