package cgroupdriver

import _ "embed"

//go:embed placeholder/placeholder_amd64
var placeholderBinary []byte
