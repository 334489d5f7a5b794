package blockdev

var (
	ExplainClaim    = Sysfs.explainClaim
	ParseUnitSerial = parseUnitSerial
)
