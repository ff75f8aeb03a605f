// Package nat keeps the address translation of pods in one nftables table, "inet cri_pods".
//
// What belongs to a pod is an element of a set or map, never a rule or a chain, so a packet costs the same lookups
// with 1 pod and with 1 000:
//
//	hostport4       tcp . 80            : 10.88.0.5 . 8080    a port on every address of the host
//	hostport4_addr  192.0.2.1 . tcp . 80: 10.88.0.5 . 8080    a port on one address
//	hairpin4        10.88.0.5 . 10.88.0.5                     source . destination to masquerade, for a pod that calls
//	                127.0.0.1 . 10.88.0.5                     itself through its port and for callers on localhost
//	masq4           10.88.0.5 : goto masq-10.88.0.0-16        what leaves the pod's subnet is masqueraded
//
// and the same with 6. Each element carries its owner as comment, "CONTAINERID IFNAME NETWORK POD", which nft shows.
// The kernel is the only record: it survives cri-server, and a change is one transaction, so it is there or not. The
// table is made when it is missing, e.g. after somebody flushed the ruleset.
package nat
