// Package quickjson writes and reads the JSON of messages that are sent for every container: what encoding/json does by
// reflection, for types that are known, in a tenth of the time. What the writers append is what encoding/json makes of the same
// value, byte for byte. The Reader reads what they and encoding/json write, and refuses whatever else JSON allows: who uses it
// turns to encoding/json then. (But an object that stands there twice counts as the second time; encoding/json joins them.)
package quickjson
