/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The part of an I/O that lies in one segment: the unit that is forwarded, parked and counted.
 *
 * A part lives in its I/O: whoever submits it allocates it, and keeps it until it has ended. It is in one place at a
 * time: with its submitter, counted in a generation, or parked in one of the engine's lists.
 */
#ifndef SEGMAP_PART_H
#define SEGMAP_PART_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "../segmap_wire.h"

#define SEGMAP_NO_SEGMENT UINT64_MAX
#define SEGMAP_NEVER_PARKED UINT64_MAX

struct segmap_channel;
struct segmap_fault;

struct segmap_part {
	/* The submitter fills these in. A FLUSH has SEGMAP_NO_SEGMENT and no range. */
	enum segmap_operation operation;
	uint32_t offset_blocks;
	uint32_t length_blocks;
	uint64_t segment;
	void *io; /* whose part it is, for abort */
	const void *owner; /* the host connection, for reset */

	/* The core's. `entry` says where a forwarded part goes, `status` how a part ended. */
	uint64_t entry;
	enum segmap_status status;
	uint32_t generation;
	struct segmap_channel *counted; /* the channel whose generation counts it, or NULL */
	uint64_t begun_epoch;
	uint64_t parked_ns; /* since when it waits, over all its faults */
	struct segmap_fault *fault;
	TAILQ_ENTRY(segmap_part) link;
};

TAILQ_HEAD(segmap_parts, segmap_part);

/* Set up a part; `io` and `owner` as above. */
static inline void
segmap_part_init(struct segmap_part *part, enum segmap_operation operation, uint64_t segment, uint32_t offset_blocks,
		 uint32_t length_blocks)
{
	part->operation = operation;
	part->segment = segment;
	part->offset_blocks = offset_blocks;
	part->length_blocks = length_blocks;
	part->counted = NULL;
	part->fault = NULL;
	part->parked_ns = SEGMAP_NEVER_PARKED;
}

#endif
