// Package luks opens volumes that are encrypted with LUKS2: it makes their headers,
// opens the mappings of dm-crypt over them, finds those again, grows and closes them.
// The reasons are in docs/adr/0015-encryption.md.
//
// The rules:
//
//   - A header is only written where nothing was ever written: on a device whose
//     beginning is all zeros, or says in words that making its header was cut off.
//     Whatever else has no valid header of this volume is an error, and stays.
//   - cryptsetup of the host makes and reads headers (pkg/program). It makes them in
//     memory; they are written here, in an order in which each state can be told from
//     the others.
//   - Keys reach cryptsetup by its standard input, and a second one by a file in memory.
//     They are in no argument, log, error or file.
//   - Which mapping is open over which device is asked of the kernel. A mapping is
//     handed out only where it shows the device that it was asked for, whole but for
//     the header.
package luks
