package native

import _ "embed"

//go:embed stub/stub_arm64
var stubImage []byte
