/* SPDX-License-Identifier: BSD-3-Clause */
#include "generations.h"

#include <assert.h>

void
segmap_generations_init(struct segmap_generations *generations)
{
	generations->turned = false;
	atomic_store(&generations->undrained, 0);
	TAILQ_INIT(&generations->draining);
	TAILQ_INIT(&generations->waiting);
}

bool
segmap_channel_uncount(struct segmap_channel *channel, struct segmap_part *part)
{
	uint32_t generation = part->generation;

	assert(part->counted == channel && channel->begun[generation] > 0);
	part->counted = NULL;
	channel->begun[generation]--;
	if (!channel->draining || generation == channel->current || channel->begun[generation] > 0) {
		return false;
	}
	channel->draining = false;
	return true;
}

void
segmap_channel_turn(struct segmap_channel *channel, struct segmap_generations *generations)
{
	uint32_t old = channel->current;

	assert(!channel->draining);
	channel->current = 1 - old;
	if (channel->begun[old] > 0) {
		channel->draining = true;
		atomic_fetch_add(&generations->undrained, 1);
	}
}

static uint64_t
earliest(const struct segmap_barriers *barriers, uint64_t deadline_ns)
{
	const struct segmap_barrier *barrier;

	TAILQ_FOREACH(barrier, barriers, link) {
		if (barrier->deadline_ns < deadline_ns) {
			deadline_ns = barrier->deadline_ns;
		}
	}
	return deadline_ns;
}

uint64_t
segmap_generations_deadline(const struct segmap_generations *generations)
{
	return earliest(&generations->draining, earliest(&generations->waiting, UINT64_MAX));
}
