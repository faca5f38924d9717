/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands and answers: what changes a table, and which parked parts that sets free.
 */
#include "parking.h"
#include "rules.h"

enum segmap_status
segmap_engine_check_entries(const struct segmap_engine *engine, uint64_t start, uint64_t count,
			    const uint64_t *entries, uint64_t length)
{
	if (!segmap_table_in_range(&engine->table, start, count) || (length != 1 && length != count)) {
		return SEGMAP_STATUS_OUT_OF_RANGE;
	}
	for (uint64_t i = 0; i < length; i++) {
		if (segmap_has_location(entries[i]) && !segmap_slots_have(&engine->slots, segmap_slot_of(entries[i]))) {
			return SEGMAP_STATUS_NO_CONTAINER;
		}
	}
	return SEGMAP_STATUS_OK;
}

static void
store(struct segmap_engine *engine, uint64_t start, uint64_t count, const uint64_t *entries, uint64_t length)
{
	if (length == count) {
		segmap_table_set(&engine->table, start, count, entries);
	} else {
		segmap_table_fill(&engine->table, start, count, entries[0]);
	}
}

/* True if the entry as it is now would not raise this very fault. */
static bool
is_overtaken(const struct segmap_engine *engine, const struct segmap_fault *fault)
{
	uint64_t entry = segmap_table_get(&engine->table, fault->segment);
	bool reclaims = engine->geometry.reclaim && fault->length_blocks == engine->blocks_per_segment;
	struct segmap_decision decision = segmap_decide(entry, fault->operation, reclaims);

	return decision.action != SEGMAP_ACTION_FAULT || decision.kind != fault->kind;
}

static void
reconsider_fault(struct segmap_engine *engine, struct segmap_fault *fault, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);

	if (is_overtaken(engine, fault)) {
		segmap_take_fault(engine, fault, &parts);
		segmap_retry(engine, &parts, now_ns);
	}
}

/* Retry parked parts that the changed entries no longer stop. Faults that this raises itself are not looked at. */
static void
reconsider(struct segmap_engine *engine, uint64_t start, uint64_t count, uint64_t now_ns)
{
	uint64_t newest = engine->plane->fault_ids;
	struct segmap_fault *fault, *next;

	if (count < engine->faults.count) {
		for (uint64_t segment = start; segment < start + count; segment++) {
			for (uint32_t kind = 0; kind < SEGMAP_FAULT_KINDS; kind++) {
				fault = segmap_faults_at(&engine->faults, segment, kind);
				if (fault != NULL && fault->fault_id <= newest) {
					reconsider_fault(engine, fault, now_ns);
				}
			}
		}
		return;
	}
	for (fault = TAILQ_FIRST(&engine->faults.outstanding); fault != NULL && fault->fault_id <= newest; fault = next) {
		next = TAILQ_NEXT(fault, link);
		if (fault->segment >= start && fault->segment - start < count) {
			reconsider_fault(engine, fault, now_ns);
		}
	}
}

enum segmap_status
segmap_engine_set_entries(struct segmap_engine *engine, uint64_t start, uint64_t count, const uint64_t *entries,
			  uint64_t length, uint64_t now_ns)
{
	enum segmap_status status = segmap_engine_check_entries(engine, start, count, entries, length);

	if (status == SEGMAP_STATUS_OK) {
		store(engine, start, count, entries, length);
		reconsider(engine, start, count, now_ns);
	}
	return status;
}

enum segmap_status
segmap_engine_set_state(struct segmap_engine *engine, uint64_t start, uint64_t count, uint32_t state, bool active,
			uint64_t now_ns)
{
	if (!segmap_table_in_range(&engine->table, start, count)) {
		return SEGMAP_STATUS_OUT_OF_RANGE;
	}
	if (!segmap_state_allowed(state, active)) {
		return SEGMAP_STATUS_FORBIDDEN;
	}
	segmap_table_set_state(&engine->table, start, count, state, active);
	reconsider(engine, start, count, now_ns);
	return SEGMAP_STATUS_OK;
}

static void
retry_fault(struct segmap_engine *engine, uint64_t fault_id, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);

	segmap_take_fault(engine, segmap_faults_find(&engine->faults, fault_id), &parts);
	segmap_retry(engine, &parts, now_ns);
}

enum segmap_status
segmap_engine_answer_replace(struct segmap_engine *engine, uint64_t fault_id, uint64_t start, uint64_t count,
			     const uint64_t *entries, uint64_t length, uint64_t now_ns)
{
	enum segmap_status status = segmap_engine_check_entries(engine, start, count, entries, length);

	if (status == SEGMAP_STATUS_OK) {
		store(engine, start, count, entries, length);
		retry_fault(engine, fault_id, now_ns);
		reconsider(engine, start, count, now_ns);
	}
	return status;
}

enum segmap_status
segmap_engine_answer_fail_request(struct segmap_engine *engine, uint64_t fault_id, enum segmap_status status)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);
	struct segmap_fault *fault = segmap_faults_find(&engine->faults, fault_id);
	struct segmap_part *part;

	if (fault == NULL) {
		return SEGMAP_STATUS_NOT_FOUND;
	}
	segmap_take_fault(engine, fault, &parts);
	while ((part = TAILQ_FIRST(&parts)) != NULL) {
		TAILQ_REMOVE(&parts, part, link);
		segmap_fail_part(engine, part, status);
	}
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_engine_answer_fail_segment(struct segmap_engine *engine, uint64_t fault_id, uint64_t segment, uint64_t now_ns)
{
	if (!segmap_table_in_range(&engine->table, segment, 1)) {
		return SEGMAP_STATUS_OUT_OF_RANGE;
	}
	segmap_table_set_state(&engine->table, segment, 1, SEGMAP_STATE_ERROR, true);
	retry_fault(engine, fault_id, now_ns);
	reconsider(engine, segment, 1, now_ns);
	return SEGMAP_STATUS_OK;
}

/* ---- standing ---- */

void
segmap_engine_remove(struct segmap_engine *engine, uint64_t now_ns)
{
	engine->present = false;
	segmap_engine_refresh(engine);
	segmap_table_wipe(&engine->table);
	segmap_retry_all(engine, now_ns);
}

void
segmap_engine_suspend(struct segmap_engine *engine)
{
	engine->suspended = true;
	segmap_engine_refresh(engine);
}

void
segmap_engine_resume(struct segmap_engine *engine, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);

	engine->suspended = false;
	segmap_engine_refresh(engine);
	segmap_take_queue(engine, &engine->held, &parts);
	segmap_retry(engine, &parts, now_ns);
}

void
segmap_engine_lease_expired(struct segmap_engine *engine, uint64_t now_ns)
{
	segmap_table_wipe(&engine->table);
	engine->sequence = 0;
	segmap_retry_all(engine, now_ns);
}

void
segmap_engine_lease_granted(struct segmap_engine *engine, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);

	segmap_engine_refresh(engine);
	segmap_take_queue(engine, &engine->unleased, &parts);
	segmap_retry(engine, &parts, now_ns);
}

int
segmap_engine_resize(struct segmap_engine *engine, uint64_t segment_count, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);
	struct segmap_fault *fault, *next;
	int rc = segmap_table_resize(&engine->table, segment_count);

	if (rc != 0) {
		return rc;
	}
	engine->geometry.segment_count = segment_count;
	for (fault = TAILQ_FIRST(&engine->faults.outstanding); fault != NULL; fault = next) {
		next = TAILQ_NEXT(fault, link);
		if (fault->segment >= segment_count) {
			segmap_take_fault(engine, fault, &parts);
		}
	}
	segmap_retry(engine, &parts, now_ns);
	return 0;
}

static bool
is_owned(const struct segmap_part *part, const void *ctx)
{
	return ctx == NULL || part->owner == ctx;
}

static bool
is_of_io(const struct segmap_part *part, const void *ctx)
{
	return part->io == ctx;
}

void
segmap_engine_reset(struct segmap_engine *engine, const void *owner)
{
	segmap_drop(engine, is_owned, owner, SEGMAP_STATUS_CANCELLED);
}

void
segmap_engine_abort(struct segmap_engine *engine, const void *io)
{
	segmap_drop(engine, is_of_io, io, SEGMAP_STATUS_CANCELLED);
}
