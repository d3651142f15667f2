// Package kdump reads and writes kdump-compressed dump files.
package kdump
