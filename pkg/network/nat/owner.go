package nat

import (
	"strings"
)

// Owner names what an element belongs to.
type Owner struct {
	ContainerID, IfName, Network string
	Pod                          string // namespace/name, for messages; may be empty
}

// maxComment keeps the comment below NFT_USERDATA_MAXLEN (256 bytes with its header).
const maxComment = 240

func (o Owner) comment() string {
	s := strings.TrimRight(strings.Join([]string{o.ContainerID, o.IfName, o.Network, o.Pod}, " "), " ")
	return s[:min(len(s), maxComment)]
}

// is tells whether the element with that comment belongs to the same attachment. Comments are cut at maxComment, so
// they are compared as they are written; the pod's name doesn't count.
func (o Owner) is(comment string) bool {
	o.Pod = ""
	mine := o.comment()
	return comment == mine || strings.HasPrefix(comment, mine+" ")
}

func parseOwner(comment string) (Owner, bool) {
	p := strings.SplitN(comment, " ", 4)
	if len(p) < 3 {
		return Owner{}, false
	}
	o := Owner{ContainerID: p[0], IfName: p[1], Network: p[2]}
	if len(p) == 4 {
		o.Pod = p[3]
	}
	return o, true
}

// String names the owner in messages: the pod where it is known.
func (o Owner) String() string {
	if o.Pod != "" {
		return "pod " + o.Pod + " (" + o.ContainerID + ")"
	}
	return "pod sandbox " + o.ContainerID
}
