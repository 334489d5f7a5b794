package lvm

// ParseReport is parseReport, for tests.
var ParseReport = parseReport
