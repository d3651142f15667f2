package criuimg

import (
	"errors"
	"fmt"
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

// inFile adds the name of the file to a FormatError that has none.
func inFile(name string, err error) error {
	var f *FormatError
	if errors.As(err, &f) {
		if f.File == "" {
			f.File = name
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("criuimg: %s: %w", name, err)
	}
	return nil
}
