// Package hostlocal gives addresses out of ranges, as the reference CNI plugin host-local does: the same configuration,
// the same order, and the same store on disk, so that both can work on one network, one after the other or at a time.
//
// The store of a network is the directory DATADIR/NETWORK:
//
//	10.88.0.5            the lease of an address: "CONTAINERID\r\nIFNAME", and white space that says of which address (see mark)
//	last_reserved_ip.0   the address given last from range set 0; the search goes on behind it
//	lock                 flock(2)ed while the directory is read and changed
//
// A lease file takes a name that no other has, or none, so an address is never given twice whatever else goes wrong. Leases survive
// cri-server and the machine; GC releases those of pods that are gone.
package hostlocal
