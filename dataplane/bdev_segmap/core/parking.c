/* SPDX-License-Identifier: BSD-3-Clause */
#include "parking.h"

void
segmap_fail_part(struct segmap_engine *engine, struct segmap_part *part, enum segmap_status status)
{
	engine->own.counters.failed++;
	segmap_complete_part(engine, part, status);
}

static bool
count_parked(struct segmap_engine *engine, struct segmap_part *part, uint64_t now_ns)
{
	if (engine->parked >= engine->faults.limit) {
		return false;
	}
	engine->parked++;
	if (part->parked_ns == SEGMAP_NEVER_PARKED) {
		part->parked_ns = now_ns;
	}
	if (part->parked_ns < engine->earliest_parked_ns) {
		engine->earliest_parked_ns = part->parked_ns;
		segmap_plane_note_deadline(engine->plane,
					   segmap_deadline(part->parked_ns, engine->plane->limits.park_ns));
	}
	return true;
}

void
segmap_park(struct segmap_engine *engine, struct segmap_part *part, struct segmap_parts *queue, uint64_t now_ns)
{
	if (!count_parked(engine, part, now_ns)) {
		segmap_fail_part(engine, part, SEGMAP_STATUS_BUSY);
		return;
	}
	TAILQ_INSERT_TAIL(queue, part, link);
}

static struct segmap_fault *
raise_fault(struct segmap_engine *engine, const struct segmap_part *part, uint64_t entry, enum segmap_fault_kind kind,
	    uint64_t now_ns)
{
	struct segmap_plane *plane = engine->plane;
	struct segmap_fault *fault = segmap_faults_add(&engine->faults, ++plane->fault_ids, part, entry, kind);

	fault->table = engine->table_id;
	fault->since_ns = now_ns;
	engine->own.counters.faults++;
	plane->effects->send_fault(plane->ctx, fault);
	return fault;
}

void
segmap_park_fault(struct segmap_engine *engine, struct segmap_part *part, uint64_t entry, enum segmap_fault_kind kind,
		  uint64_t now_ns)
{
	struct segmap_fault *fault;

	if (!count_parked(engine, part, now_ns)) {
		segmap_fail_part(engine, part, SEGMAP_STATUS_BUSY);
		return;
	}
	fault = segmap_faults_at(&engine->faults, part->segment, kind);
	if (fault == NULL) {
		fault = raise_fault(engine, part, entry, kind, now_ns);
	}
	TAILQ_INSERT_TAIL(&fault->parts, part, link);
	part->fault = fault;
}

void
segmap_take_fault(struct segmap_engine *engine, struct segmap_fault *fault, struct segmap_parts *parts)
{
	struct segmap_part *part;

	if (fault == NULL) {
		return;
	}
	TAILQ_FOREACH(part, &fault->parts, link) {
		part->fault = NULL;
		engine->parked--;
	}
	TAILQ_CONCAT(parts, &fault->parts, link);
	segmap_faults_remove(&engine->faults, fault);
}

void
segmap_take_queue(struct segmap_engine *engine, struct segmap_parts *queue, struct segmap_parts *parts)
{
	struct segmap_part *part;

	TAILQ_FOREACH(part, queue, link) {
		engine->parked--;
	}
	TAILQ_CONCAT(parts, queue, link);
}

void
segmap_retry(struct segmap_engine *engine, struct segmap_parts *parts, uint64_t now_ns)
{
	struct segmap_part *part;

	while ((part = TAILQ_FIRST(parts)) != NULL) {
		TAILQ_REMOVE(parts, part, link);
		segmap_engine_submit(engine, part, now_ns);
	}
}

/* Move the first `count` parts of `from` (or all) to the end of `to`. */
static void
cut(struct segmap_parts *from, uint32_t count, struct segmap_parts *to)
{
	struct segmap_part *part;

	while (count-- > 0 && (part = TAILQ_FIRST(from)) != NULL) {
		TAILQ_REMOVE(from, part, link);
		TAILQ_INSERT_TAIL(to, part, link);
	}
}

/* Merge two sorted runs onto the end of `to`; of equal ones, those of `left` come first. */
static void
merge(struct segmap_parts *left, struct segmap_parts *right, struct segmap_parts *to)
{
	struct segmap_part *a, *b;

	while ((a = TAILQ_FIRST(left)) != NULL && (b = TAILQ_FIRST(right)) != NULL) {
		cut(a->parked_ns <= b->parked_ns ? left : right, 1, to);
	}
	TAILQ_CONCAT(to, left, link);
	TAILQ_CONCAT(to, right, link);
}

/* Sort `count` parts by the time since when they wait; stable, in place, from runs of one upwards. */
static void
sort_by_age(struct segmap_parts *parts, uint32_t count)
{
	struct segmap_parts sorted, left, right;

	for (uint64_t run = 1; run < count; run *= 2) {
		TAILQ_INIT(&sorted);
		while (!TAILQ_EMPTY(parts)) {
			TAILQ_INIT(&left);
			TAILQ_INIT(&right);
			cut(parts, (uint32_t)run, &left);
			cut(parts, (uint32_t)run, &right);
			merge(&left, &right, &sorted);
		}
		TAILQ_CONCAT(parts, &sorted, link);
	}
}

void
segmap_retry_all(struct segmap_engine *engine, uint64_t now_ns)
{
	struct segmap_parts parts = TAILQ_HEAD_INITIALIZER(parts);
	struct segmap_fault *fault;
	uint32_t count = engine->parked;

	while ((fault = TAILQ_FIRST(&engine->faults.outstanding)) != NULL) {
		segmap_take_fault(engine, fault, &parts);
	}
	segmap_take_queue(engine, &engine->unleased, &parts);
	segmap_take_queue(engine, &engine->held, &parts);
	engine->earliest_parked_ns = UINT64_MAX;
	sort_by_age(&parts, count);
	segmap_retry(engine, &parts, now_ns);
}

/* What a drop looks for, and what it has found. */
struct drop {
	bool (*doomed)(const struct segmap_part *part, const void *ctx);
	const void *ctx;
	struct segmap_parts dropped;
};

static void
pick(struct segmap_engine *engine, struct segmap_parts *from, struct drop *drop)
{
	struct segmap_part *part, *next;

	for (part = TAILQ_FIRST(from); part != NULL; part = next) {
		next = TAILQ_NEXT(part, link);
		if (drop->doomed(part, drop->ctx)) {
			TAILQ_REMOVE(from, part, link);
			TAILQ_INSERT_TAIL(&drop->dropped, part, link);
			part->fault = NULL;
			engine->parked--;
			engine->own.counters.dropped++;
		}
	}
}

void
segmap_drop(struct segmap_engine *engine, bool (*doomed)(const struct segmap_part *part, const void *ctx),
	    const void *ctx, enum segmap_status status)
{
	struct drop drop = { .doomed = doomed, .ctx = ctx };
	struct segmap_fault *fault, *next;
	struct segmap_part *part;

	TAILQ_INIT(&drop.dropped);
	for (fault = TAILQ_FIRST(&engine->faults.outstanding); fault != NULL; fault = next) {
		next = TAILQ_NEXT(fault, link);
		pick(engine, &fault->parts, &drop);
		if (TAILQ_EMPTY(&fault->parts)) {
			segmap_faults_remove(&engine->faults, fault);
		}
	}
	pick(engine, &engine->unleased, &drop);
	pick(engine, &engine->held, &drop);
	while ((part = TAILQ_FIRST(&drop.dropped)) != NULL) {
		TAILQ_REMOVE(&drop.dropped, part, link);
		segmap_complete_part(engine, part, status);
	}
}
