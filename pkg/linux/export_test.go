package linux

// The two ways of BindFile, of which a kernel takes the first that it knows.
var (
	BindDetached = bindDetached
	BindByPath   = bindByPath
)

// What is exchanged with device-mapper.
var (
	ParseMappings = parseMappings
	ParseTargets  = parseTargets
	FormatTargets = formatTargets
)

// BlockNodeTreeOfMounted is the way of BlockNodeTree that kernels before 6.15 need.
func BlockNodeTreeOfMounted(number DeviceNumber, uid, gid, mode uint32) (*File, error) {
	return blockNodeTree(treeOfMounted, number, uid, gid, mode)
}
