// Package gpt reads and writes the GUID partition table of a whole disk (UEFI
// 2.10, chapter 5): the protective MBR, and two copies of a header and 128
// entries, at the beginning and at the end of the disk.
//
// A Table is a value. A change is made to a copy of it, and Replace puts the copy
// on the disk such that one copy is whole at any time, whatever write is cut off:
//
//  1. what is on the disk is compared with what the caller believes, and a copy
//     that is damaged is written again;
//  2. the backup is written and flushed;
//  3. the primary is written and flushed;
//  4. both are read back and compared.
//
// So where both are whole and differ, the backup is the newer one. Where one is
// damaged, the other is used. Where both are, there is an error, never an empty
// table.
//
// It only takes tables of the shape that it writes itself: 128 entries of 128
// bytes, which is also that of all common tools. docs/adr/0008-gpt-library.md
// says why there is such a package at all.
package gpt
