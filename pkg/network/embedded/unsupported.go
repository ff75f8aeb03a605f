package embedded

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
)

// Unsupported tells what of a plugin's configuration the embedded plugin can't do: errdefs.ErrNotImplemented with the
// key's name, nil where it can do all. A configuration that can't be parsed is no case for it.
func Unsupported(plugin string, stdin []byte) error {
	var c struct {
		Vlan                 int             `json:"vlan"`
		VlanTrunk            json.RawMessage `json:"vlanTrunk"`
		MacSpoofChk          bool            `json:"macspoofchk"`
		IPMasq               bool            `json:"ipMasq"`
		IPMasqBackend        string          `json:"ipMasqBackend"`
		Backend              string          `json:"backend"`
		ConditionsV4         []string        `json:"conditionsV4"`
		ConditionsV6         []string        `json:"conditionsV6"`
		MasqAll              bool            `json:"masqAll"`
		MarkMasqBit          *int            `json:"markMasqBit"`
		ExternalSetMarkChain *string         `json:"externalSetMarkChain"`
	}
	if json.Unmarshal(stdin, &c) != nil {
		return nil
	}
	var key string
	switch plugin {
	case "bridge":
		switch {
		case c.Vlan != 0:
			key = "vlan"
		case len(c.VlanTrunk) > 0 && string(c.VlanTrunk) != "null" && string(c.VlanTrunk) != "[]":
			key = "vlanTrunk"
		case c.MacSpoofChk:
			key = "macspoofchk"
		case c.IPMasq && c.IPMasqBackend != "" && c.IPMasqBackend != "nftables":
			key = "ipMasqBackend " + c.IPMasqBackend
		}
	case "portmap":
		switch {
		case c.Backend != "" && c.Backend != "nftables":
			key = "backend " + c.Backend
		case len(c.ConditionsV4) > 0:
			key = "conditionsV4"
		case len(c.ConditionsV6) > 0:
			key = "conditionsV6"
		case c.MasqAll:
			key = "masqAll"
		case c.MarkMasqBit != nil:
			key = "markMasqBit"
		case c.ExternalSetMarkChain != nil:
			key = "externalSetMarkChain"
		}
	}
	if key == "" {
		return nil
	}
	return fmt.Errorf("%s: %q is not something the embedded plugin does; install the reference plugin %s for it: %w", plugin, key, plugin, errdefs.ErrNotImplemented)
}
