package criuimg

import (
	"errors"
	"fmt"
	"io/fs"
)

// Reasons for refusing an image. They arrive wrapped in a *FormatError that
// names the file and the place; test with errors.Is.
var (
	ErrMagic     = errors.New("wrong magic number")             // not an image of this kind
	ErrTruncated = errors.New("file ends inside an entry")      // cut off, or a damaged length
	ErrTooLarge  = errors.New("entry larger than the limit")    // damaged length, or not an image
	ErrMessage   = errors.New("entry is no valid message")      // protobuf cannot be parsed, or a required field is missing
	ErrPagemap   = errors.New("pagemap contradicts itself")     // unaligned, unsorted, or not matching the pages file
	ErrVersion   = errors.New("image version not supported")    // made by a CRIU this package does not know
	ErrSequence  = errors.New("entry out of place in the file") // wrong message type, or payload missing
)

// FormatError reports where a file stops being a valid image.
type FormatError struct {
	File   string // name inside the set; empty when only a reader was given
	Offset int64  // bytes from the start of the file to the entry, or to the magic
	Err    error  // one of the reasons above, or an I/O error, possibly wrapped
}

// Error gives file, offset and reason in one line.
func (e *FormatError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("criuimg: offset %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("criuimg: %s: offset %d: %v", e.File, e.Offset, e.Err)
}

// Unwrap returns the reason.
func (e *FormatError) Unwrap() error { return e.Err }

// fileError is any other error, with the image it is about.
type fileError struct {
	op   string
	file string
	err  error
}

func (e *fileError) Error() string {
	if e.op != "" {
		return fmt.Sprintf("criuimg: %s %s: %v", e.op, e.file, e.err)
	}
	return fmt.Sprintf("criuimg: %s: %v", e.file, e.err)
}

func (e *fileError) Unwrap() error { return e.err }

// inFile says in an error which image it is about, unless it says so already. A
// path in it is left out: it would be that of the temporary directory.
func inFile(name string, err error) error {
	var (
		format *FormatError
		file   *fileError
		path   *fs.PathError
	)
	switch {
	case err == nil || errors.As(err, &file):
		return err
	case errors.As(err, &path):
		return &fileError{path.Op, name, path.Err}
	case errors.As(err, &format):
		if format.File == "" {
			format.File = name
		}
		return err
	}
	return &fileError{"", name, err}
}
