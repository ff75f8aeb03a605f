package cgroupdriver

import _ "embed"

//go:embed placeholder/placeholder_arm64
var placeholderBinary []byte
