/* SPDX-License-Identifier: BSD-3-Clause */
#include "lease.h"

#define DURATION_MAX_NS UINT64_C(60000000000)

void
segmap_lease_init(struct segmap_lease *lease)
{
	lease->valid = false;
	lease->deadline_ns = 0;
	lease->duration_max_ns = DURATION_MAX_NS;
	atomic_store(&lease->epoch, 1);
	atomic_store(&lease->until_ticks, 0);
}

enum segmap_status
segmap_lease_grant(struct segmap_lease *lease, uint64_t sent_ns, uint64_t duration_ns, uint64_t now_ns)
{
	uint64_t deadline_ns;

	if (sent_ns > now_ns || duration_ns == 0 || duration_ns > lease->duration_max_ns) {
		return SEGMAP_STATUS_BAD_MESSAGE;
	}
	deadline_ns = segmap_deadline(sent_ns, duration_ns);
	if (deadline_ns <= now_ns) {
		return SEGMAP_STATUS_LEASE_EXPIRED;
	}
	lease->valid = true;
	if (deadline_ns > lease->deadline_ns) {
		lease->deadline_ns = deadline_ns;
	}
	return SEGMAP_STATUS_OK;
}

void
segmap_lease_end(struct segmap_lease *lease)
{
	lease->valid = false;
	lease->deadline_ns = 0;
	atomic_store(&lease->until_ticks, 0);
}

void
segmap_lease_begin_epoch(struct segmap_lease *lease)
{
	atomic_fetch_add(&lease->epoch, 1);
}
