/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Per-channel generations: how a blocking command knows that older I/O has ended, without stopping newer I/O [0036].
 *
 * Each channel counts its begun parts in one of two generations, on its own thread, without atomics. A barrier turns
 * every channel to the other one, and is reached when no channel counts anything in the old one. Barriers that arrive
 * meanwhile wait and share the next turn. The owner begins parts too (those that had been parked): it counts them in a
 * channel of its own.
 */
#ifndef SEGMAP_GENERATIONS_H
#define SEGMAP_GENERATIONS_H

#include <stdatomic.h>

#include "part.h"

/* What parts have met; each channel counts its own. */
struct segmap_counters {
	uint64_t forwarded;
	uint64_t zero_reads;
	uint64_t faults;
	uint64_t failed;
	uint64_t dropped;
};

struct segmap_engine;

/* What one thread does I/O through. Only that thread touches it. */
struct segmap_channel {
	struct segmap_engine *engine;
	uint32_t current;
	bool draining; /* the generation that is not current still counts something, and a barrier waits for that */
	uint64_t begun[2];
	struct segmap_counters counters;
};

/* A blocking command that waits. The caller keeps it until it is reached. */
struct segmap_barrier {
	uint64_t deadline_ns;
	TAILQ_ENTRY(segmap_barrier) link;
};

TAILQ_HEAD(segmap_barriers, segmap_barrier);

struct segmap_generations {
	bool turned; /* a turn is under way */
	_Atomic(uint32_t) undrained; /* channels that it still waits for */
	struct segmap_barriers draining; /* served by it */
	struct segmap_barriers waiting; /* for the next one */
};

void segmap_generations_init(struct segmap_generations *generations);

/* Count a part. */
static inline void
segmap_channel_count(struct segmap_channel *channel, struct segmap_part *part)
{
	part->counted = channel;
	part->generation = channel->current;
	channel->begun[channel->current]++;
}

/* Uncount it. True if a turn has waited for this: then tell the owner (segmap_engine_drained). */
bool segmap_channel_uncount(struct segmap_channel *channel, struct segmap_part *part);

/* Turn the channel to its other generation, on its own thread. */
void segmap_channel_turn(struct segmap_channel *channel, struct segmap_generations *generations);

/* The earliest deadline of a barrier, or UINT64_MAX. */
uint64_t segmap_generations_deadline(const struct segmap_generations *generations);

#endif
