// Package crashpoint lets a test kill the plugin between any two steps of a
// call.
//
// A room writes crashpoint.Here("what was just done") after each step that
// changes something on the node. In a normal build Here is an empty function
// that the compiler removes. Built with -tags crashpoints, the process kills
// itself with SIGKILL at the point whose number is in the environment variable
// RAWBLOCK_CRASH_AT (the first point reached is 1), or stops itself with SIGSTOP at
// that of RAWBLOCK_STOP_AT, so that the test can change something before it goes on.
// It appends the name of each point it reaches to the file named by
// RAWBLOCK_CRASH_TRACE.
//
// This package imports nothing of the project, and every room may import it.
package crashpoint
