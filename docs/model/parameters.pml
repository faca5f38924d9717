/* How much may happen. Every one can be given as -DNAME=VALUE; all are bounds of one run, not of the protocol. */
#ifndef LOCATIONS
#define LOCATIONS 2      /* segments of containers */
#endif
#ifndef READERS
#define READERS 3        /* agents (bits) at which a host reads */
#endif
#ifndef WRITERS
#define WRITERS 3        /* agents (bits) at which a host writes */
#endif
#ifndef READS
#define READS 255        /* reads of hosts; 255: any number */
#endif
#ifndef WRITES
#define WRITES 2         /* writes of hosts, each with a value of its own: at most 6 */
#endif
#ifndef UNMAPS
#define UNMAPS 0         /* whole-segment unmaps: reclaim, free, zero, re-use */
#endif
#ifndef SNAPSHOTS
#define SNAPSHOTS 0      /* snapshots, copy-on-write, and dropping them */
#endif
#ifndef ABORTS
#define ABORTS 0         /* parked I/Os that a host gives up */
#endif
#ifndef EXPIRIES
#define EXPIRIES 1       /* leases that run out */
#endif
#ifndef LOSSES
#define LOSSES 0         /* sessions that end: a partition, or a daemon that dies */
#endif
#ifndef RESETS
#define RESETS 0         /* connections to containers that break under an I/O, which may still be carried out */
#endif
#ifndef RESTARTS
#define RESTARTS 0       /* of the controller */
#endif
#ifndef CRASHES
#define CRASHES 0        /* of data planes */
#endif
#ifndef FENCES
#define FENCES 0         /* fences begun under a valid lease: a late barrier, an operator */
#endif
#ifndef REPLAYS
#define REPLAYS 0        /* old messages that a stopped daemon brings later */
#endif
#ifndef NUMBERED
#define NUMBERED 1       /* 0: sessions bear no number (an older controller or data plane): daemons drop old messages */
#endif
#ifndef CLOCK
#define CLOCK 0          /* 1: the lease of an agent without a session runs out, however many did before */
#endif
