package native

import _ "embed"

//go:embed stub/stub_amd64
var stubImage []byte
