package linux

// The two ways of BindFile, of which a kernel takes the first that it knows.
var (
	BindDetached = bindDetached
	BindByPath   = bindByPath
)
