// Package checkpoint saves a guest process, from outside its virtual machine, as a
// set of images that stock "criu restore" accepts in another one.
//
// CRIU saves a process from beside it: it stops it with ptrace, puts code of its
// own into it and asks the kernel. Nothing of that is possible, or needed, from
// outside: all that the kernel would answer lies in guest memory. [Save] holds the
// process with package signal, so that its threads leave their system calls as
// they would for a debugger; collects its state through package kernel while the
// machine is paused for a moment; copies its pages while the machine runs on; and
// then lets it go, stops or kills it.
//
// There is one file per kind of state, which holds both how it is collected from
// the kernel and how CRIU wants it encoded.
//
// What cannot be carried is an [Issue]. [Check] reports them all before anything
// is touched, and Save refuses a process with issues unless it is told otherwise:
// nothing is ever left out silently.
package checkpoint
