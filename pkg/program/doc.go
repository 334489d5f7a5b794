// Package program runs programs of the host: the tools whose on-disk formats only
// they may change, lvm and cryptsetup (docs/adr/0013-programs.md). Nothing else runs
// a program, and no program runs on the way of NodePublishVolume of the other pools.
//
// A program gets what it is given here and nothing of the plugin: no environment but
// LC_ALL and PATH, no terminal, no descriptor, no shell, the working directory /.
// Arguments can be read by everybody on the node (/proc/PID/cmdline), so secrets go
// through the standard input, which is never logged.
package program
