package main

import (
	"fmt"
	"strings"
)

// screen prints the demo.
type screen struct {
	// number is that of the present step.
	number int
	// shorten writes $DEMO for the demo's directory.
	shorten *strings.Replacer
}

func newScreen(dir string) screen {
	return screen{shorten: strings.NewReplacer(dir, "$DEMO")}
}

// next begins a step.
func (s *screen) next(about string) {
	s.number++
	fmt.Printf("\n%d. %s\n", s.number, about)
}

// did shows what is done: a command with $, a call of the plugin with its name.
func (s *screen) did(format string, args ...any) { s.indented("   > ", format, args) }

// saw shows what came of it.
func (s *screen) saw(format string, args ...any) { s.indented("     ", format, args) }

func (s *screen) indented(by, format string, args []any) {
	text := s.shorten.Replace(fmt.Sprintf(format, args...))
	fmt.Println(by + strings.ReplaceAll(text, "\n", "\n     "))
}
