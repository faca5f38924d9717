/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Parked parts of an engine: where they wait, and how they leave. Internal to the core; the owner's.
 */
#ifndef SEGMAP_PARKING_H
#define SEGMAP_PARKING_H

#include "plane.h"

static inline void
segmap_complete_part(struct segmap_engine *engine, struct segmap_part *part, enum segmap_status status)
{
	part->status = status;
	engine->plane->effects->complete(engine->plane->ctx, part);
}

/* End a part in an error, and count that. */
void segmap_fail_part(struct segmap_engine *engine, struct segmap_part *part, enum segmap_status status);

/* Park it in `queue` (of those without a lease, or of the suspended), or fail it with BUSY. */
void segmap_park(struct segmap_engine *engine, struct segmap_part *part, struct segmap_parts *queue, uint64_t now_ns);

/* Park it in the fault of its segment and kind, which is raised if there is none, or fail it with BUSY. */
void segmap_park_fault(struct segmap_engine *engine, struct segmap_part *part, uint64_t entry,
		       enum segmap_fault_kind kind, uint64_t now_ns);

/* Remove a fault (not if NULL); its parts, no longer parked, are appended to `parts`. */
void segmap_take_fault(struct segmap_engine *engine, struct segmap_fault *fault, struct segmap_parts *parts);

/* Remove a queue's parts likewise. */
void segmap_take_queue(struct segmap_engine *engine, struct segmap_parts *queue, struct segmap_parts *parts);

/* Remove everything, and submit it again in the order in which it was parked. */
void segmap_retry_all(struct segmap_engine *engine, uint64_t now_ns);

/* Submit parts again; the list is empty afterwards. */
void segmap_retry(struct segmap_engine *engine, struct segmap_parts *parts, uint64_t now_ns);

/* Drop the parked parts that `doomed` points out. They end with `status`; a fault that nobody waits for goes too. */
void segmap_drop(struct segmap_engine *engine, bool (*doomed)(const struct segmap_part *part, const void *ctx),
		 const void *ctx, enum segmap_status status);

#endif
