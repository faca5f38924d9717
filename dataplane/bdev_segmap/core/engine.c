/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "parking.h"
#include "rules.h"

int
segmap_geometry_check(const struct segmap_geometry *geometry)
{
	if (geometry->block_size != 512 && geometry->block_size != 4096) {
		return -EINVAL;
	}
	if (geometry->segment_size < SEGMAP_SEGMENT_SIZE_MIN || geometry->segment_size > SEGMAP_SEGMENT_SIZE_MAX ||
	    geometry->segment_size % geometry->block_size != 0) {
		return -EINVAL;
	}
	return geometry->segment_count > 0 && geometry->segment_count <= SEGMAP_SEGMENTS_MAX ? 0 : -EINVAL;
}

int
segmap_engine_open(struct segmap_engine *engine, struct segmap_plane *plane, uint64_t table_id,
		   const struct segmap_geometry *geometry)
{
	int rc = segmap_geometry_check(geometry);

	if (rc != 0) {
		return rc;
	}
	memset(engine, 0, sizeof(*engine));
	rc = segmap_table_open(&engine->table, geometry->segment_count);
	if (rc != 0) {
		return rc;
	}
	rc = segmap_faults_open(&engine->faults, plane->limits.parked_max);
	if (rc != 0) {
		segmap_table_close(&engine->table);
		return rc;
	}
	engine->plane = plane;
	engine->lease = &plane->lease;
	engine->table_id = table_id;
	engine->geometry = *geometry;
	engine->blocks_per_segment = geometry->segment_size / geometry->block_size;
	engine->present = true;
	engine->earliest_parked_ns = UINT64_MAX;
	TAILQ_INIT(&engine->unleased);
	TAILQ_INIT(&engine->held);
	segmap_generations_init(&engine->generations);
	segmap_channel_init(&engine->own, engine);
	segmap_engine_refresh(engine);
	return 0;
}

void
segmap_engine_close(struct segmap_engine *engine)
{
	assert(engine->parked == 0);
	segmap_faults_close(&engine->faults);
	segmap_table_close(&engine->table);
}

void
segmap_engine_refresh(struct segmap_engine *engine)
{
	bool open = engine->present && !engine->suspended;
	uint64_t until = open ? atomic_load(&engine->lease->until_ticks) : 0;

	atomic_store(&engine->open_until_ticks, until);
}

/* ---- on a channel's thread ---- */

void
segmap_channel_init(struct segmap_channel *channel, struct segmap_engine *engine)
{
	memset(channel, 0, sizeof(*channel));
	channel->engine = engine;
}

static enum segmap_step
end_now(struct segmap_part *part, enum segmap_status status)
{
	part->status = status;
	return SEGMAP_STEP_COMPLETE;
}

static enum segmap_step
fail_now(struct segmap_channel *channel, struct segmap_part *part, enum segmap_status status)
{
	channel->counters.failed++;
	return end_now(part, status);
}

static void
begin(struct segmap_channel *channel, struct segmap_part *part, uint64_t epoch)
{
	segmap_channel_count(channel, part);
	part->begun_epoch = epoch;
	channel->counters.forwarded++;
}

static struct segmap_decision
decide(const struct segmap_engine *engine, const struct segmap_part *part, uint64_t entry)
{
	bool reclaims = engine->geometry.reclaim && part->length_blocks == engine->blocks_per_segment;

	return segmap_decide(entry, part->operation, reclaims);
}

/* The part goes where the table says. Turns reach a channel between two parts: counting first would change nothing. */
static enum segmap_step
follow_entry(struct segmap_channel *channel, struct segmap_part *part, uint64_t epoch)
{
	const struct segmap_engine *engine = channel->engine;
	uint64_t entry;

	if (part->segment >= segmap_table_count(&engine->table)) {
		return fail_now(channel, part, SEGMAP_STATUS_OUT_OF_RANGE);
	}
	entry = segmap_table_get(&engine->table, part->segment);
	if (segmap_goes_straight(entry, part->operation)) {
		part->entry = entry;
		begin(channel, part, epoch);
		return SEGMAP_STEP_FORWARD;
	}
	switch (decide(engine, part, entry).action) {
	case SEGMAP_ACTION_FORWARD:
		part->entry = entry;
		begin(channel, part, epoch);
		return SEGMAP_STEP_FORWARD;
	case SEGMAP_ACTION_RETURN_ZEROES:
		channel->counters.zero_reads++;
		return SEGMAP_STEP_ZEROES;
	case SEGMAP_ACTION_COMPLETE:
		return end_now(part, SEGMAP_STATUS_OK);
	case SEGMAP_ACTION_FAIL:
		return fail_now(channel, part, SEGMAP_STATUS_IO_ERROR);
	default:
		return SEGMAP_STEP_ASK_OWNER;
	}
}

enum segmap_step
segmap_channel_submit(struct segmap_channel *channel, struct segmap_part *part, uint64_t now_ticks)
{
	const struct segmap_engine *engine = channel->engine;
	/* The epoch first: an entry may be of a later epoch than the part, never of an earlier one. */
	uint64_t epoch = segmap_lease_epoch(engine->lease);

	if (now_ticks >= atomic_load_explicit(&engine->open_until_ticks, memory_order_acquire)) {
		return SEGMAP_STEP_ASK_OWNER;
	}
	if (engine->geometry.read_only && segmap_is_write(part->operation)) {
		return fail_now(channel, part, SEGMAP_STATUS_WRITE_PROTECTED);
	}
	if (part->operation == SEGMAP_OPERATION_FLUSH) {
		if (atomic_load_explicit(&engine->lacks_container, memory_order_acquire)) {
			return fail_now(channel, part, SEGMAP_STATUS_NO_CONTAINER);
		}
		begin(channel, part, epoch);
		return SEGMAP_STEP_FORWARD;
	}
	return follow_entry(channel, part, epoch);
}

enum segmap_step
segmap_channel_complete(struct segmap_channel *channel, struct segmap_part *part, enum segmap_status status,
			bool settled, uint64_t now_ticks, bool *drained)
{
	const struct segmap_lease *lease = channel->engine->lease;

	assert(settled || status != SEGMAP_STATUS_OK);
	*drained = false;
	part->status = status;
	if (part->counted != channel) {
		return SEGMAP_STEP_ASK_OWNER;
	}
	*drained = settled && segmap_channel_uncount(channel, part);
	if (now_ticks < atomic_load_explicit(&lease->until_ticks, memory_order_acquire) &&
	    part->begun_epoch == segmap_lease_epoch(lease)) {
		return SEGMAP_STEP_COMPLETE;
	}
	return SEGMAP_STEP_ASK_OWNER;
}

bool
segmap_channel_settle(struct segmap_channel *channel, struct segmap_part *part)
{
	return segmap_channel_uncount(channel, part);
}

bool
segmap_channel_withdraw(struct segmap_channel *channel, struct segmap_part *part)
{
	channel->counters.forwarded--;
	return segmap_channel_uncount(channel, part);
}

/* ---- on the owner's thread ---- */

static void
begin_own(struct segmap_engine *engine, struct segmap_part *part)
{
	begin(&engine->own, part, segmap_lease_epoch(engine->lease));
	engine->plane->effects->forward(engine->plane->ctx, part);
}

static void
follow_entry_own(struct segmap_engine *engine, struct segmap_part *part, uint64_t now_ns)
{
	uint64_t entry = segmap_table_get(&engine->table, part->segment);
	struct segmap_decision decision = decide(engine, part, entry);

	switch (decision.action) {
	case SEGMAP_ACTION_FORWARD:
		part->entry = entry;
		begin_own(engine, part);
		return;
	case SEGMAP_ACTION_RETURN_ZEROES:
		engine->own.counters.zero_reads++;
		engine->plane->effects->return_zeroes(engine->plane->ctx, part);
		return;
	case SEGMAP_ACTION_COMPLETE:
		segmap_complete_part(engine, part, SEGMAP_STATUS_OK);
		return;
	case SEGMAP_ACTION_FAULT:
		segmap_park_fault(engine, part, entry, decision.kind, now_ns);
		return;
	default:
		segmap_fail_part(engine, part, SEGMAP_STATUS_IO_ERROR);
		return;
	}
}

void
segmap_engine_submit(struct segmap_engine *engine, struct segmap_part *part, uint64_t now_ns)
{
	if (engine->geometry.read_only && segmap_is_write(part->operation)) {
		segmap_fail_part(engine, part, SEGMAP_STATUS_WRITE_PROTECTED);
	} else if (engine->suspended) {
		segmap_park(engine, part, &engine->held, now_ns);
	} else if (!segmap_lease_covers(engine->lease, now_ns)) {
		segmap_park(engine, part, &engine->unleased, now_ns);
	} else if (part->operation == SEGMAP_OPERATION_FLUSH) {
		if (atomic_load_explicit(&engine->lacks_container, memory_order_acquire)) {
			segmap_fail_part(engine, part, SEGMAP_STATUS_NO_CONTAINER);
		} else {
			begin_own(engine, part);
		}
	} else if (!engine->present) {
		segmap_park_fault(engine, part, SEGMAP_INVALID_ENTRY, SEGMAP_FAULT_NO_TABLE, now_ns);
	} else if (part->segment >= segmap_table_count(&engine->table)) {
		segmap_fail_part(engine, part, SEGMAP_STATUS_OUT_OF_RANGE);
	} else {
		follow_entry_own(engine, part, now_ns);
	}
}

void
segmap_engine_complete(struct segmap_engine *engine, struct segmap_part *part, bool settled, uint64_t now_ns)
{
	bool drained = settled && part->counted != NULL && segmap_channel_uncount(&engine->own, part);
	bool good = part->begun_epoch == segmap_lease_epoch(engine->lease) &&
		    segmap_lease_covers(engine->lease, now_ns);
	bool again = !good && settled && part->operation == SEGMAP_OPERATION_READ;

	if (good) {
		segmap_complete_part(engine, part, part->status);
	} else if (!again) {
		segmap_fail_part(engine, part, SEGMAP_STATUS_LEASE_EXPIRED);
	}
	if (drained) {
		segmap_engine_drained(engine);
	}
	if (again) {
		segmap_engine_submit(engine, part, now_ns);
	}
}

void
segmap_engine_settle(struct segmap_engine *engine, struct segmap_part *part)
{
	if (segmap_channel_settle(&engine->own, part)) {
		segmap_engine_drained(engine);
	}
}

void
segmap_engine_withdraw(struct segmap_engine *engine, struct segmap_part *part)
{
	if (segmap_channel_withdraw(&engine->own, part)) {
		segmap_engine_drained(engine);
	}
}

/* ---- barriers ---- */

static void
reach(struct segmap_engine *engine, struct segmap_barriers *barriers, struct segmap_barrier *barrier,
      enum segmap_status status)
{
	TAILQ_REMOVE(barriers, barrier, link);
	engine->plane->effects->barrier_reached(engine->plane->ctx, barrier, status);
}

static void
turn(struct segmap_engine *engine)
{
	struct segmap_generations *generations = &engine->generations;

	generations->turned = true;
	/* One for the turn itself, until every channel has been turned. */
	atomic_store(&generations->undrained, 1);
	segmap_channel_turn(&engine->own, generations);
	if (engine->plane->effects->turn(engine->plane->ctx, engine)) {
		atomic_fetch_sub(&generations->undrained, 1);
	}
}

/* End the turn if it has drained, and begin the next one if somebody waits for it. */
static void
settle(struct segmap_engine *engine)
{
	struct segmap_generations *generations = &engine->generations;
	struct segmap_barrier *barrier;

	for (;;) {
		if (generations->turned) {
			if (atomic_load(&generations->undrained) > 0) {
				return;
			}
			generations->turned = false;
			while ((barrier = TAILQ_FIRST(&generations->draining)) != NULL) {
				reach(engine, &generations->draining, barrier, SEGMAP_STATUS_OK);
			}
		}
		if (TAILQ_EMPTY(&generations->waiting)) {
			return;
		}
		TAILQ_CONCAT(&generations->draining, &generations->waiting, link);
		turn(engine);
	}
}

void
segmap_engine_drained(struct segmap_engine *engine)
{
	uint32_t before = atomic_fetch_sub(&engine->generations.undrained, 1);

	assert(before > 0);
	if (before == 1) {
		settle(engine);
	}
}

void
segmap_engine_barrier(struct segmap_engine *engine, struct segmap_barrier *barrier, uint64_t now_ns)
{
	struct segmap_plane *plane = engine->plane;

	barrier->deadline_ns = segmap_deadline(now_ns, plane->limits.io_ns);
	segmap_plane_note_deadline(plane, barrier->deadline_ns);
	TAILQ_INSERT_TAIL(&engine->generations.waiting, barrier, link);
	if (!engine->generations.turned) {
		settle(engine);
	}
}

static void
fail_late(struct segmap_engine *engine, struct segmap_barriers *barriers, uint64_t now_ns)
{
	struct segmap_barrier *barrier, *next;

	for (barrier = TAILQ_FIRST(barriers); barrier != NULL; barrier = next) {
		next = TAILQ_NEXT(barrier, link);
		if (barrier->deadline_ns <= now_ns) {
			reach(engine, barriers, barrier, SEGMAP_STATUS_BARRIER_TIMEOUT);
		}
	}
}

/* ---- time ---- */

static bool
is_late(const struct segmap_part *part, const void *ctx)
{
	const uint64_t *parked_before_ns = ctx;

	return part->parked_ns <= *parked_before_ns;
}

static void
find_earliest(void *ctx, const struct segmap_part *part)
{
	uint64_t *earliest_ns = ctx;

	if (part->parked_ns < *earliest_ns) {
		*earliest_ns = part->parked_ns;
	}
}

void
segmap_engine_tick(struct segmap_engine *engine, uint64_t now_ns)
{
	uint64_t park_ns = engine->plane->limits.park_ns, before_ns = now_ns - park_ns;

	fail_late(engine, &engine->generations.draining, now_ns);
	fail_late(engine, &engine->generations.waiting, now_ns);
	if (park_ns > now_ns || engine->earliest_parked_ns > before_ns) {
		return;
	}
	segmap_drop(engine, is_late, &before_ns, SEGMAP_STATUS_TIMEOUT);
	engine->earliest_parked_ns = UINT64_MAX;
	segmap_engine_each_parked(engine, find_earliest, &engine->earliest_parked_ns);
}

uint64_t
segmap_engine_next_deadline(const struct segmap_engine *engine)
{
	uint64_t barrier_ns = segmap_generations_deadline(&engine->generations);
	uint64_t park_ns = segmap_deadline(engine->earliest_parked_ns, engine->plane->limits.park_ns);

	return barrier_ns < park_ns ? barrier_ns : park_ns;
}

static void
each(const struct segmap_parts *parts, void (*visit)(void *ctx, const struct segmap_part *part), void *ctx)
{
	const struct segmap_part *part;

	TAILQ_FOREACH(part, parts, link) {
		visit(ctx, part);
	}
}

void
segmap_engine_each_parked(const struct segmap_engine *engine, void (*visit)(void *ctx, const struct segmap_part *part),
			  void *ctx)
{
	const struct segmap_fault *fault;

	TAILQ_FOREACH(fault, &engine->faults.outstanding, link) {
		each(&fault->parts, visit, ctx);
	}
	each(&engine->unleased, visit, ctx);
	each(&engine->held, visit, ctx);
}
