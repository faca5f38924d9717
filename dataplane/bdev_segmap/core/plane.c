/* SPDX-License-Identifier: BSD-3-Clause */
#include "plane.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define NS_PER_S UINT64_C(1000000000)
#define PARK_NS (30 * NS_PER_S)
#define IO_NS (20 * NS_PER_S)

void
segmap_plane_init(struct segmap_plane *plane, const uint8_t instance[16], const struct segmap_limits *limits,
		  const struct segmap_effects *effects, void *ctx)
{
	memset(plane, 0, sizeof(*plane));
	memcpy(plane->instance, instance, sizeof(plane->instance));
	plane->effects = effects;
	plane->ctx = ctx;
	plane->limits = (struct segmap_limits) { PARK_NS, IO_NS, SEGMAP_PARKED_MAX };
	if (limits != NULL) {
		plane->limits = *limits;
	}
	plane->tick_at_ns = UINT64_MAX;
	segmap_lease_init(&plane->lease);
	TAILQ_INIT(&plane->engines);
	TAILQ_INIT(&plane->jobs);
}

/* ---- standing ---- */

enum segmap_status
segmap_plane_begin_session(struct segmap_plane *plane)
{
	if (plane->sessions >= SEGMAP_SESSIONS_MAX) {
		return SEGMAP_STATUS_LIMIT;
	}
	plane->session = ++plane->sessions;
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_plane_admit(struct segmap_plane *plane, uint64_t term, uint64_t incarnation, const uint8_t cluster[16],
		   uint64_t park_ns, uint64_t io_ns, uint64_t lease_max_ns, uint64_t session, uint64_t now_ns)
{
	bool known = plane->incarnation != 0;

	if (term < plane->term) {
		return SEGMAP_STATUS_STALE_TERM;
	}
	if (known && incarnation != plane->incarnation) {
		return SEGMAP_STATUS_STALE_INCARNATION;
	}
	if (incarnation == 0 || term == 0 || (known && memcmp(cluster, plane->cluster, sizeof(plane->cluster)) != 0)) {
		return SEGMAP_STATUS_BAD_MESSAGE;
	}
	if (session != 0 && session != plane->sessions) {
		return SEGMAP_STATUS_STALE_EPOCH;
	}
	plane->term = term;
	plane->incarnation = incarnation;
	plane->session = session;
	memcpy(plane->cluster, cluster, sizeof(plane->cluster));
	plane->lease.duration_max_ns = lease_max_ns;
	plane->limits.park_ns = park_ns;
	plane->limits.io_ns = io_ns;
	plane->tick_at_ns = 0; /* the limits are others than those it was reckoned with */
	segmap_plane_tick(plane, now_ns);
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_plane_check(const struct segmap_plane *plane, const struct segmap_stamp *stamp)
{
	if (plane->incarnation == 0 || stamp->term > plane->term) {
		return SEGMAP_STATUS_NOT_ADMITTED;
	}
	if (stamp->term < plane->term) {
		return SEGMAP_STATUS_STALE_TERM;
	}
	if (stamp->incarnation != plane->incarnation) {
		return SEGMAP_STATUS_STALE_INCARNATION;
	}
	if (stamp->epoch != segmap_numbered(segmap_lease_epoch(&plane->lease), plane->session)) {
		return SEGMAP_STATUS_STALE_EPOCH;
	}
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_plane_grant_lease(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t sent_ns,
			 uint64_t duration_ns, uint64_t now_ns)
{
	struct segmap_lease *lease = &plane->lease;
	struct segmap_engine *engine;
	enum segmap_status status;

	segmap_plane_tick(plane, now_ns);
	status = segmap_plane_check(plane, stamp);
	if (status == SEGMAP_STATUS_OK) {
		status = segmap_lease_grant(lease, sent_ns, duration_ns, now_ns);
	}
	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	atomic_store(&lease->until_ticks, plane->effects->ticks_at(plane->ctx, lease->deadline_ns));
	segmap_plane_note_deadline(plane, lease->deadline_ns);
	TAILQ_FOREACH(engine, &plane->engines, link) {
		segmap_engine_lease_granted(engine, now_ns);
	}
	return SEGMAP_STATUS_OK;
}

static void
expire(struct segmap_plane *plane, uint64_t now_ns)
{
	struct segmap_engine *engine;

	segmap_lease_end(&plane->lease);
	TAILQ_FOREACH(engine, &plane->engines, link) {
		segmap_engine_refresh(engine);
	}
	segmap_lease_begin_epoch(&plane->lease);
	plane->effects->epoch_began(plane->ctx, segmap_lease_epoch(&plane->lease));
	TAILQ_FOREACH(engine, &plane->engines, link) {
		segmap_engine_lease_expired(engine, now_ns);
	}
}

void
segmap_plane_tick(struct segmap_plane *plane, uint64_t now_ns)
{
	struct segmap_engine *engine;

	if (now_ns < plane->tick_at_ns) {
		return;
	}
	if (plane->lease.valid && now_ns >= plane->lease.deadline_ns) {
		expire(plane, now_ns);
	}
	TAILQ_FOREACH(engine, &plane->engines, link) {
		segmap_engine_tick(engine, now_ns);
	}
	plane->tick_at_ns = segmap_plane_next_deadline(plane);
}

uint64_t
segmap_plane_next_deadline(const struct segmap_plane *plane)
{
	uint64_t earliest_ns = plane->lease.valid ? plane->lease.deadline_ns : UINT64_MAX;
	const struct segmap_engine *engine;

	TAILQ_FOREACH(engine, &plane->engines, link) {
		uint64_t deadline_ns = segmap_engine_next_deadline(engine);

		if (deadline_ns < earliest_ns) {
			earliest_ns = deadline_ns;
		}
	}
	return earliest_ns;
}

void
segmap_plane_note_deadline(struct segmap_plane *plane, uint64_t deadline_ns)
{
	if (deadline_ns < plane->tick_at_ns) {
		plane->tick_at_ns = deadline_ns;
	}
}

/* ---- tables and containers ---- */

/* The low half is the agent's number, the same in all ids here; the high half is the virtual disk's. */
static uint32_t
bucket_of(uint64_t table_id)
{
	return (uint32_t)(table_id ^ table_id >> 32) & (SEGMAP_TABLE_BUCKETS - 1);
}

struct segmap_engine *
segmap_plane_find(const struct segmap_plane *plane, uint64_t table_id)
{
	struct segmap_engine *engine = plane->by_id[bucket_of(table_id)];

	while (engine != NULL && engine->table_id != table_id) {
		engine = engine->next_of_id;
	}
	return engine;
}

enum segmap_status
segmap_plane_create_table(struct segmap_plane *plane, struct segmap_engine *engine, uint64_t table_id,
			  const struct segmap_geometry *geometry, const struct segmap_slots *slots)
{
	int rc;

	if (segmap_plane_find(plane, table_id) != NULL) {
		return SEGMAP_STATUS_EXISTS;
	}
	if (plane->table_count >= SEGMAP_TABLES_MAX) {
		return SEGMAP_STATUS_LIMIT;
	}
	if (!segmap_slots_within(slots, &plane->bound)) {
		return SEGMAP_STATUS_NO_CONTAINER;
	}
	rc = segmap_engine_open(engine, plane, table_id, geometry);
	if (rc != 0) {
		return rc == -EINVAL ? SEGMAP_STATUS_OUT_OF_RANGE : SEGMAP_STATUS_NO_SPACE;
	}
	engine->slots = *slots;
	engine->next_of_id = plane->by_id[bucket_of(table_id)];
	plane->by_id[bucket_of(table_id)] = engine;
	TAILQ_INSERT_TAIL(&plane->engines, engine, link);
	plane->table_count++;
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_plane_remove_table(struct segmap_plane *plane, uint64_t table_id, uint64_t now_ns)
{
	struct segmap_engine *engine = segmap_plane_find(plane, table_id);

	if (engine == NULL) {
		return SEGMAP_STATUS_NO_TABLE;
	}
	segmap_engine_remove(engine, now_ns);
	return SEGMAP_STATUS_OK;
}

void
segmap_plane_drop_table(struct segmap_plane *plane, struct segmap_engine *engine)
{
	struct segmap_engine **at = &plane->by_id[bucket_of(engine->table_id)];

	assert(engine->own.begun[0] == 0 && engine->own.begun[1] == 0);
	assert(!engine->generations.turned);
	while (*at != engine) {
		at = &(*at)->next_of_id;
	}
	*at = engine->next_of_id;
	TAILQ_REMOVE(&plane->engines, engine, link);
	plane->table_count--;
	segmap_engine_reset(engine, NULL);
	segmap_engine_close(engine);
}

/* The table a stamped message means. */
static enum segmap_status
find_present(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id, uint64_t now_ns,
	     struct segmap_engine **engine)
{
	enum segmap_status status;

	segmap_plane_tick(plane, now_ns);
	status = segmap_plane_check(plane, stamp);
	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	*engine = segmap_plane_find(plane, table_id);
	return *engine != NULL && (*engine)->present ? SEGMAP_STATUS_OK : SEGMAP_STATUS_NO_TABLE;
}

enum segmap_status
segmap_plane_table_slots(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id,
			 const struct segmap_slots *slots, bool lacks, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status status = find_present(plane, stamp, table_id, now_ns, &engine);
	struct segmap_slots leaving;
	uint64_t any = 0;

	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	if (!segmap_slots_within(slots, &plane->bound)) {
		return SEGMAP_STATUS_NO_CONTAINER;
	}
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		leaving.words[i] = engine->slots.words[i] & ~slots->words[i];
		any |= leaving.words[i];
	}
	if (any != 0 && segmap_table_names(&engine->table, &leaving)) {
		return SEGMAP_STATUS_BUSY;
	}
	engine->slots = *slots;
	atomic_store_explicit(&engine->lacks_container, lacks, memory_order_release);
	return SEGMAP_STATUS_OK;
}

enum segmap_status
segmap_plane_bind_slot(struct segmap_plane *plane, uint32_t slot, const uint8_t container[16])
{
	uint8_t *known = plane->containers[slot];

	if (!segmap_slots_have(&plane->bound, slot)) {
		segmap_slots_add(&plane->bound, slot);
		memcpy(known, container, 16);
	}
	return memcmp(known, container, 16) == 0 ? SEGMAP_STATUS_OK : SEGMAP_STATUS_EXISTS;
}

enum segmap_status
segmap_plane_unbind_slot(struct segmap_plane *plane, uint32_t slot)
{
	const struct segmap_engine *engine;
	const struct segmap_job *job;

	if (!segmap_slots_have(&plane->bound, slot)) {
		return SEGMAP_STATUS_NO_CONTAINER;
	}
	TAILQ_FOREACH(engine, &plane->engines, link) {
		if (segmap_slots_have(&engine->slots, slot)) {
			return SEGMAP_STATUS_BUSY;
		}
	}
	TAILQ_FOREACH(job, &plane->jobs, link) {
		if (segmap_slots_have(&job->slots, slot)) {
			return SEGMAP_STATUS_BUSY;
		}
	}
	segmap_slots_remove(&plane->bound, slot);
	return SEGMAP_STATUS_OK;
}

/* ---- commands that carry entries ---- */

/* As find_present; consumes the stamp's sequence. */
static enum segmap_status
in_sequence(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id, uint64_t now_ns,
	    struct segmap_engine **engine)
{
	enum segmap_status status = find_present(plane, stamp, table_id, now_ns, engine);

	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	if (stamp->sequence <= (*engine)->sequence) {
		return SEGMAP_STATUS_SEQUENCE_OLD;
	}
	if (stamp->sequence != (*engine)->sequence + 1) {
		return SEGMAP_STATUS_SEQUENCE_GAP;
	}
	(*engine)->sequence++;
	return SEGMAP_STATUS_OK;
}

static enum segmap_status
then_barrier(struct segmap_engine *engine, enum segmap_status status, struct segmap_barrier *barrier, uint64_t now_ns)
{
	if (status == SEGMAP_STATUS_OK && barrier != NULL) {
		segmap_engine_barrier(engine, barrier, now_ns);
	}
	return status;
}

enum segmap_status
segmap_plane_set_entries(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id,
			 uint64_t start, uint64_t count, const uint64_t *entries, uint64_t length,
			 struct segmap_barrier *barrier, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status status = in_sequence(plane, stamp, table_id, now_ns, &engine);

	if (status == SEGMAP_STATUS_OK) {
		status = segmap_engine_set_entries(engine, start, count, entries, length, now_ns);
	}
	return then_barrier(engine, status, barrier, now_ns);
}

enum segmap_status
segmap_plane_set_state(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id, uint64_t start,
		       uint64_t count, uint32_t state, bool active, struct segmap_barrier *barrier, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status status = in_sequence(plane, stamp, table_id, now_ns, &engine);

	if (status == SEGMAP_STATUS_OK) {
		status = segmap_engine_set_state(engine, start, count, state, active, now_ns);
	}
	return then_barrier(engine, status, barrier, now_ns);
}

enum segmap_status
segmap_plane_suspend(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id,
		     struct segmap_barrier *barrier, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status status = find_present(plane, stamp, table_id, now_ns, &engine);

	if (status == SEGMAP_STATUS_OK) {
		segmap_engine_suspend(engine);
	}
	return then_barrier(engine, status, barrier, now_ns);
}

enum segmap_status
segmap_plane_resume(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id,
		    struct segmap_barrier *barrier, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status status = find_present(plane, stamp, table_id, now_ns, &engine);

	if (status == SEGMAP_STATUS_OK) {
		segmap_engine_resume(engine, now_ns);
	}
	return then_barrier(engine, status, barrier, now_ns);
}

static enum segmap_status
apply_answer(struct segmap_engine *engine, const struct segmap_answer *answer, uint64_t now_ns)
{
	switch (answer->action) {
	case SEGMAP_ANSWER_REPLACE:
		return segmap_engine_answer_replace(engine, answer->fault_id, answer->start, answer->count,
						    answer->entries, answer->length, now_ns);
	case SEGMAP_ANSWER_FAIL_REQUEST:
		if (answer->status == SEGMAP_STATUS_OK || answer->status > SEGMAP_STATUS_UNAUTHORIZED) {
			return SEGMAP_STATUS_BAD_MESSAGE;
		}
		return segmap_engine_answer_fail_request(engine, answer->fault_id, answer->status);
	case SEGMAP_ANSWER_FAIL_SEGMENT:
		return segmap_engine_answer_fail_segment(engine, answer->fault_id, answer->start, now_ns);
	default:
		return SEGMAP_STATUS_BAD_MESSAGE;
	}
}

enum segmap_status
segmap_plane_answer_faults(struct segmap_plane *plane, const struct segmap_stamp *stamp, uint64_t table_id,
			   const struct segmap_answer *answers, uint32_t count, uint64_t now_ns)
{
	struct segmap_engine *engine = NULL;
	enum segmap_status first = in_sequence(plane, stamp, table_id, now_ns, &engine);

	if (first != SEGMAP_STATUS_OK) {
		return first;
	}
	for (uint32_t i = 0; i < count; i++) {
		enum segmap_status status = apply_answer(engine, &answers[i], now_ns);

		if (first == SEGMAP_STATUS_OK && status != SEGMAP_STATUS_NOT_FOUND) {
			first = status;
		}
	}
	return first;
}

/* ---- copy and zero ---- */

enum segmap_status
segmap_plane_begin_job(struct segmap_plane *plane, const struct segmap_stamp *stamp, struct segmap_job *job,
		       const struct segmap_slots *slots, uint64_t now_ns)
{
	enum segmap_status status;

	segmap_plane_tick(plane, now_ns);
	status = segmap_plane_check(plane, stamp);
	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	if (!segmap_lease_covers(&plane->lease, now_ns)) {
		return SEGMAP_STATUS_LEASE_EXPIRED;
	}
	if (!segmap_slots_within(slots, &plane->bound)) {
		return SEGMAP_STATUS_NO_CONTAINER;
	}
	job->epoch = segmap_lease_epoch(&plane->lease);
	job->slots = *slots;
	TAILQ_INSERT_TAIL(&plane->jobs, job, link);
	return SEGMAP_STATUS_OK;
}

bool
segmap_plane_may_continue(const struct segmap_plane *plane, const struct segmap_job *job, uint64_t now_ns)
{
	return job->epoch == segmap_lease_epoch(&plane->lease) && segmap_lease_covers(&plane->lease, now_ns);
}

enum segmap_status
segmap_plane_end_job(struct segmap_plane *plane, struct segmap_job *job, enum segmap_status status, uint64_t now_ns)
{
	bool covered = segmap_plane_may_continue(plane, job, now_ns);

	TAILQ_REMOVE(&plane->jobs, job, link);
	/* A failure stays what it is: its container may still carry the I/O out. */
	return covered || status != SEGMAP_STATUS_OK ? status : SEGMAP_STATUS_LEASE_EXPIRED;
}
