/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lease: how long a data plane may begin I/O without hearing from the controller [0027].
 *
 * One per data plane. Expiry is sticky: it begins a new epoch, and only a grant of that epoch ends it. Times are
 * CLOCK_MONOTONIC in nanoseconds, counted from when the renewal was sent. The owner changes it; I/O channels look only
 * at `epoch` and at `until_ticks`, the deadline on the channels' own, cheaper clock.
 */
#ifndef SEGMAP_LEASE_H
#define SEGMAP_LEASE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "../segmap_wire.h"

struct segmap_lease {
	bool valid;
	uint64_t deadline_ns;
	uint64_t duration_max_ns;
	_Atomic(uint64_t) epoch; /* counts the expiries, from 1 */
	_Atomic(uint64_t) until_ticks; /* 0 without a lease */
};

/* `since_ns` + `span_ns`, or the end of time. */
static inline uint64_t
segmap_deadline(uint64_t since_ns, uint64_t span_ns)
{
	return span_ns > UINT64_MAX - since_ns ? UINT64_MAX : since_ns + span_ns;
}

static inline uint64_t
segmap_lease_epoch(const struct segmap_lease *lease)
{
	return atomic_load_explicit(&lease->epoch, memory_order_acquire);
}

/* True if an I/O may begin, or may succeed, now. */
static inline bool
segmap_lease_covers(const struct segmap_lease *lease, uint64_t now_ns)
{
	return lease->valid && now_ns < lease->deadline_ns;
}

void segmap_lease_init(struct segmap_lease *lease);

/* Extend it to `sent_ns` + `duration_ns`. A grant never shortens it, and a late one is refused. */
enum segmap_status segmap_lease_grant(struct segmap_lease *lease, uint64_t sent_ns, uint64_t duration_ns,
				      uint64_t now_ns);

/*
 * The deadline has passed. First the lease ends, then, when every engine has been closed, the new epoch begins: whoever
 * sees the epoch finds the engines closed.
 */
void segmap_lease_end(struct segmap_lease *lease);
void segmap_lease_begin_epoch(struct segmap_lease *lease);

#endif
