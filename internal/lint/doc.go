// Package lint holds the house rules that a test can check: which package may import
// which, and what a source file must look like.
package lint
