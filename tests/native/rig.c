/* SPDX-License-Identifier: BSD-3-Clause */
#include "rig.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/plane.h"
#include "core/rules.h"

#define TABLES 8
#define CHANNELS 2
#define PARTS 65536
#define TOKENS 65536

enum kind { FORWARD = 1, ZEROES, COMPLETE, SEND_FAULT, BARRIER, EPOCH, RESULT, TABLE, PLANE, FAULTS, ENTRIES, DECISION };

struct rig_barrier {
	struct segmap_barrier barrier;
	uint64_t token;
};

struct rig_part {
	struct segmap_part part;
	struct segmap_engine *engine;
	struct segmap_channel *channel;
	uint64_t index;
};

struct rig_table {
	struct segmap_engine engine;
	struct segmap_channel channels[CHANNELS];
	bool used;
};

struct rig {
	struct segmap_plane plane;
	struct rig_table tables[TABLES];
	struct rig_part *parts[PARTS];
	struct rig_part *unsettled[PARTS]; /* copies */
	struct segmap_job *jobs[TOKENS];
	uint64_t *log;
	uint64_t length, room;
};

/* ---- the log ---- */

static void
put(struct rig *rig, uint64_t word)
{
	if (rig->length == rig->room) {
		rig->room = rig->room * 2 + 64;
		rig->log = realloc(rig->log, rig->room * sizeof(uint64_t));
		assert(rig->log != NULL);
	}
	rig->log[rig->length++] = word;
}

static void
record(struct rig *rig, enum kind kind, uint64_t count, const uint64_t *words)
{
	put(rig, kind);
	put(rig, count);
	for (uint64_t i = 0; i < count; i++) {
		put(rig, words[i]);
	}
}

#define RECORD(rig, kind, ...) \
	record(rig, kind, sizeof((uint64_t[]) { __VA_ARGS__ }) / sizeof(uint64_t), (const uint64_t[]) { __VA_ARGS__ })

const uint64_t *
rig_log(struct rig *rig, uint64_t *length)
{
	*length = rig->length;
	rig->length = 0;
	return rig->log;
}

static struct rig_part *
rig_part_of(struct segmap_part *part)
{
	return (struct rig_part *)((char *)part - offsetof(struct rig_part, part));
}

/* ---- effects ---- */

static void
log_forward(void *ctx, struct segmap_part *part)
{
	struct rig *rig = ctx;

	RECORD(rig, FORWARD, rig_part_of(part)->index, part->operation == SEGMAP_OPERATION_FLUSH ? 0 : part->entry);
}

static void
end(struct rig *rig, struct segmap_part *part)
{
	struct rig_part *mine = rig_part_of(part);

	rig->parts[mine->index] = NULL;
	free(mine);
}

static void
log_zeroes(void *ctx, struct segmap_part *part)
{
	struct rig *rig = ctx;

	RECORD(rig, ZEROES, rig_part_of(part)->index);
	end(rig, part);
}

static void
log_complete(void *ctx, struct segmap_part *part)
{
	struct rig *rig = ctx;

	RECORD(rig, COMPLETE, rig_part_of(part)->index, part->status);
	end(rig, part);
}

static void
log_fault(void *ctx, const struct segmap_fault *fault)
{
	RECORD((struct rig *)ctx, SEND_FAULT, fault->fault_id, fault->table, fault->segment, fault->entry,
	       fault->operation, fault->kind, fault->state, fault->offset_blocks, fault->length_blocks, fault->since_ns);
}

static void
log_barrier(void *ctx, struct segmap_barrier *barrier, enum segmap_status status)
{
	struct rig_barrier *mine = (struct rig_barrier *)barrier;

	RECORD((struct rig *)ctx, BARRIER, mine->token, status);
	free(mine);
}

static void
log_epoch(void *ctx, uint64_t epoch)
{
	RECORD((struct rig *)ctx, EPOCH, epoch);
}

static bool
turn(void *ctx, struct segmap_engine *engine)
{
	struct rig_table *table = (struct rig_table *)engine;

	(void)ctx;
	for (int i = 0; i < CHANNELS; i++) {
		segmap_channel_turn(&table->channels[i], &engine->generations);
	}
	return true;
}

static uint64_t
ticks_at(void *ctx, uint64_t deadline_ns)
{
	(void)ctx;
	return deadline_ns;
}

static const struct segmap_effects effects = {
	.forward = log_forward,
	.return_zeroes = log_zeroes,
	.complete = log_complete,
	.send_fault = log_fault,
	.barrier_reached = log_barrier,
	.epoch_began = log_epoch,
	.turn = turn,
	.ticks_at = ticks_at,
};

struct rig *
rig_open(uint64_t parked_max)
{
	struct segmap_limits limits = { .park_ns = 3000, .io_ns = 2000, .parked_max = (uint32_t)parked_max };
	struct rig *rig = calloc(1, sizeof(*rig));

	assert(rig != NULL);
	segmap_plane_init(&rig->plane, (const uint8_t *)"iiiiiiiiiiiiiiii", &limits, &effects, rig);
	return rig;
}

static void
free_barriers(struct segmap_barriers *barriers)
{
	struct segmap_barrier *barrier;

	while ((barrier = TAILQ_FIRST(barriers)) != NULL) {
		TAILQ_REMOVE(barriers, barrier, link);
		free(barrier);
	}
}

void
rig_close(struct rig *rig)
{
	for (int i = 0; i < TABLES; i++) {
		struct segmap_engine *engine = &rig->tables[i].engine;

		if (rig->tables[i].used) {
			segmap_engine_reset(engine, NULL);
			free_barriers(&engine->generations.draining);
			free_barriers(&engine->generations.waiting);
			segmap_engine_close(engine);
		}
	}
	for (int i = 0; i < PARTS; i++) {
		free(rig->parts[i]);
		free(rig->unsettled[i]);
		free(rig->jobs[i]);
	}
	free(rig->log);
	free(rig);
}

/* ---- commands ---- */

static struct rig_table *
table_of(struct rig *rig, uint64_t table_id)
{
	return (struct rig_table *)segmap_plane_find(&rig->plane, table_id);
}

static void
submit(struct rig *rig, struct rig_part *mine, uint64_t now)
{
	switch (segmap_channel_submit(mine->channel, &mine->part, now)) {
	case SEGMAP_STEP_FORWARD:
		log_forward(rig, &mine->part);
		return;
	case SEGMAP_STEP_ZEROES:
		log_zeroes(rig, &mine->part);
		return;
	case SEGMAP_STEP_COMPLETE:
		log_complete(rig, &mine->part);
		return;
	case SEGMAP_STEP_ASK_OWNER:
		segmap_engine_submit(mine->engine, &mine->part, now);
		return;
	}
}

/* table, index, channel, operation, segment, offset, length, io, owner, now */
static void
run_submit(struct rig *rig, const uint64_t *words)
{
	struct rig_table *table = table_of(rig, words[0]);
	struct rig_part *mine = calloc(1, sizeof(*mine));

	assert(mine != NULL && words[1] < PARTS);
	rig->parts[words[1]] = mine;
	mine->index = words[1];
	mine->engine = &table->engine;
	mine->channel = &table->channels[words[2]];
	segmap_part_init(&mine->part, (enum segmap_operation)words[3], words[4], (uint32_t)words[5],
			 (uint32_t)words[6]);
	mine->part.io = (void *)(uintptr_t)words[7];
	mine->part.owner = (void *)(uintptr_t)words[8];
	submit(rig, mine, words[9]);
}

static struct rig_part *
copy_of(const struct rig_part *mine)
{
	struct rig_part *copy = malloc(sizeof(*copy));

	assert(copy != NULL);
	*copy = *mine;
	return copy;
}

/* index, status, settled, now */
static void
run_complete(struct rig *rig, const uint64_t *words)
{
	struct rig_part *mine = rig->parts[words[0]];
	bool settled = words[2] != 0;
	struct segmap_engine *engine = mine->engine;
	bool drained, read = mine->part.operation == SEGMAP_OPERATION_READ;
	enum segmap_step step;

	if (!settled) {
		rig->unsettled[words[0]] = copy_of(mine);
	}
	step = segmap_channel_complete(mine->channel, &mine->part, (enum segmap_status)words[1], settled, words[3],
				       &drained);
	if (step == SEGMAP_STEP_COMPLETE) {
		log_complete(rig, &mine->part);
	} else if (drained && read) {
		segmap_engine_drained(engine);
		drained = false;
	}
	if (step == SEGMAP_STEP_ASK_OWNER) {
		segmap_engine_complete(engine, &mine->part, settled, words[3]);
	}
	if (drained) {
		segmap_engine_drained(engine);
	}
}

/* index: what ended unsettled */
static void
run_settle(struct rig *rig, const uint64_t *words)
{
	struct rig_part *copy = rig->unsettled[words[0]];

	if (copy->part.counted != copy->channel) {
		segmap_engine_settle(copy->engine, &copy->part);
	} else if (segmap_channel_settle(copy->channel, &copy->part)) {
		segmap_engine_drained(copy->engine);
	}
	rig->unsettled[words[0]] = NULL;
	free(copy);
}

/* index, now: the container was out of memory; the part is tried again */
static void
run_withdraw(struct rig *rig, const uint64_t *words)
{
	struct rig_part *mine = rig->parts[words[0]];

	if (mine->part.counted != mine->channel) {
		segmap_engine_withdraw(mine->engine, &mine->part);
	} else if (segmap_channel_withdraw(mine->channel, &mine->part)) {
		segmap_engine_drained(mine->engine);
	}
	submit(rig, mine, words[1]);
}

static struct segmap_barrier *
new_barrier(uint64_t token)
{
	struct rig_barrier *barrier;

	if (token == 0) {
		return NULL;
	}
	barrier = calloc(1, sizeof(*barrier));
	assert(barrier != NULL);
	barrier->token = token;
	return &barrier->barrier;
}

static void
result(struct rig *rig, enum segmap_status status, struct segmap_barrier *unused)
{
	if (status != SEGMAP_STATUS_OK) {
		free(unused);
	}
	RECORD(rig, RESULT, status);
}

static struct segmap_stamp
stamp_in(const uint64_t *words)
{
	return (struct segmap_stamp) { words[0], words[1], words[2], words[3] };
}

static struct segmap_slots
slots_in(uint64_t count, const uint64_t *words)
{
	struct segmap_slots slots = { { 0 } };

	for (uint64_t i = 0; i < count; i++) {
		segmap_slots_add(&slots, (uint32_t)words[i]);
	}
	return slots;
}

/* stamp[4], table, now, token, start, count, length, entries */
static void
run_set_entries(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_barrier *barrier = new_barrier(words[6]);

	result(rig, segmap_plane_set_entries(&rig->plane, &stamp, words[4], words[7], words[8], words + 10, words[9],
					     barrier, words[5]), barrier);
}

/* stamp[4], table, now, token, start, count, state, active */
static void
run_set_state(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_barrier *barrier = new_barrier(words[6]);

	result(rig, segmap_plane_set_state(&rig->plane, &stamp, words[4], words[7], words[8], (uint32_t)words[9],
					   words[10] != 0, barrier, words[5]), barrier);
}

/* stamp[4], table, now, answers, { fault, action, status, start, count, length, entries } */
static void
run_answer(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_answer answers[16];
	const uint64_t *at = words + 7;

	assert(words[6] <= 16);
	for (uint64_t i = 0; i < words[6]; i++) {
		answers[i] = (struct segmap_answer) { at[0], (uint32_t)at[1], (uint32_t)at[2], at[3], at[4], at + 6,
						      at[5] };
		at += 6 + at[5];
	}
	result(rig, segmap_plane_answer_faults(&rig->plane, &stamp, words[4], answers, (uint32_t)words[6], words[5]),
	       NULL);
}

/* stamp[4], table, now, token */
static void
run_suspend(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_barrier *barrier = new_barrier(words[6]);

	result(rig, segmap_plane_suspend(&rig->plane, &stamp, words[4], barrier, words[5]), barrier);
}

static void
run_resume(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);

	result(rig, segmap_plane_resume(&rig->plane, &stamp, words[4], NULL, words[5]), NULL);
}

/* stamp[4], sent, duration, now */
static void
run_grant(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);

	result(rig, segmap_plane_grant_lease(&rig->plane, &stamp, words[4], words[5], words[6]), NULL);
}

static void
run_tick(struct rig *rig, const uint64_t *words)
{
	segmap_plane_tick(&rig->plane, words[0]);
}

static void
run_reset(struct rig *rig, const uint64_t *words)
{
	segmap_engine_reset(&table_of(rig, words[0])->engine, (void *)(uintptr_t)words[1]);
}

static void
run_abort(struct rig *rig, const uint64_t *words)
{
	segmap_engine_abort(&table_of(rig, words[0])->engine, (void *)(uintptr_t)words[1]);
}

/* term, incarnation, cluster, park, io, lease, session, now */
static void
run_admit(struct rig *rig, const uint64_t *words)
{
	uint8_t cluster[16];

	memset(cluster, (int)words[2], sizeof(cluster));
	result(rig, segmap_plane_admit(&rig->plane, words[0], words[1], cluster, words[3], words[4], words[5],
				       words[6], words[7]), NULL);
}

static void
run_begin_session(struct rig *rig, const uint64_t *words)
{
	(void)words;
	result(rig, segmap_plane_begin_session(&rig->plane), NULL);
}

static void
run_bind(struct rig *rig, const uint64_t *words)
{
	uint8_t container[16];

	memset(container, (int)words[1], sizeof(container));
	result(rig, segmap_plane_bind_slot(&rig->plane, (uint32_t)words[0], container), NULL);
}

static void
run_unbind(struct rig *rig, const uint64_t *words)
{
	result(rig, segmap_plane_unbind_slot(&rig->plane, (uint32_t)words[0]), NULL);
}

/* table, segments, segment size, block size, reclaim, read-only, slots, slot... */
static void
run_create(struct rig *rig, const uint64_t *words)
{
	struct segmap_geometry geometry = { words[1], (uint32_t)words[2], (uint32_t)words[3], words[4] != 0,
					    words[5] != 0 };
	struct segmap_slots slots = slots_in(words[6], words + 7);
	struct rig_table *table = rig->tables;
	enum segmap_status status;

	while (table->used) {
		table++;
	}
	assert(table < rig->tables + TABLES);
	status = segmap_plane_create_table(&rig->plane, &table->engine, words[0], &geometry, &slots);
	table->used = status == SEGMAP_STATUS_OK;
	for (int i = 0; i < CHANNELS; i++) {
		segmap_channel_init(&table->channels[i], &table->engine);
	}
	result(rig, status, NULL);
}

static void
run_remove(struct rig *rig, const uint64_t *words)
{
	result(rig, segmap_plane_remove_table(&rig->plane, words[0], words[1]), NULL);
}

static void
run_drop(struct rig *rig, const uint64_t *words)
{
	struct rig_table *table = table_of(rig, words[0]);

	segmap_plane_drop_table(&rig->plane, &table->engine);
	table->used = false;
}

/* stamp[4], table, now, lacks a container, slots, slot... */
static void
run_table_slots(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_slots slots = slots_in(words[7], words + 8);

	result(rig, segmap_plane_table_slots(&rig->plane, &stamp, words[4], &slots, words[6] != 0, words[5]), NULL);
}

/* table, segments, now */
static void
run_resize(struct rig *rig, const uint64_t *words)
{
	int rc = segmap_engine_resize(&table_of(rig, words[0])->engine, words[1], words[2]);

	result(rig, rc == 0 ? SEGMAP_STATUS_OK : SEGMAP_STATUS_OUT_OF_RANGE, NULL);
}

/* stamp[4], token, now, slots, slot... */
static void
run_begin_job(struct rig *rig, const uint64_t *words)
{
	struct segmap_stamp stamp = stamp_in(words);
	struct segmap_slots slots = slots_in(words[6], words + 7);
	struct segmap_job *job = calloc(1, sizeof(*job));
	enum segmap_status status;

	assert(job != NULL && words[4] < TOKENS);
	status = segmap_plane_begin_job(&rig->plane, &stamp, job, &slots, words[5]);
	if (status == SEGMAP_STATUS_OK) {
		rig->jobs[words[4]] = job;
	} else {
		free(job);
	}
	result(rig, status, NULL);
}

static void
run_may_continue(struct rig *rig, const uint64_t *words)
{
	RECORD(rig, RESULT, segmap_plane_may_continue(&rig->plane, rig->jobs[words[0]], words[1]));
}

static void
run_end_job(struct rig *rig, const uint64_t *words)
{
	struct segmap_job *job = rig->jobs[words[0]];

	result(rig, segmap_plane_end_job(&rig->plane, job, (enum segmap_status)words[1], words[2]), NULL);
	rig->jobs[words[0]] = NULL;
	free(job);
}

/* ---- looking ---- */

static void
dump_faults(struct rig *rig, const struct segmap_engine *engine)
{
	const struct segmap_fault *fault;
	uint64_t at;

	put(rig, FAULTS);
	at = rig->length;
	put(rig, 0);
	TAILQ_FOREACH(fault, &engine->faults.outstanding, link) {
		const struct segmap_part *part;
		uint64_t parts = 0;

		TAILQ_FOREACH(part, &fault->parts, link) {
			parts++;
		}
		put(rig, fault->fault_id);
		put(rig, parts);
	}
	rig->log[at] = rig->length - at - 1;
}

static struct segmap_counters
counters_of(const struct rig_table *table)
{
	struct segmap_counters sum = table->engine.own.counters;

	for (int i = 0; i < CHANNELS; i++) {
		sum.forwarded += table->channels[i].counters.forwarded;
		sum.zero_reads += table->channels[i].counters.zero_reads;
		sum.failed += table->channels[i].counters.failed;
	}
	return sum;
}

/* table: all there is to see of it */
static void
run_look(struct rig *rig, const uint64_t *words)
{
	struct rig_table *table = table_of(rig, words[0]);
	struct segmap_engine *engine = &table->engine;
	struct segmap_counters sum = counters_of(table);
	uint64_t counts[5], segments = segmap_table_count(&engine->table);

	segmap_table_counts(&engine->table, counts);
	RECORD(rig, TABLE, engine->sequence, engine->present, engine->suspended, engine->parked,
	       segmap_engine_next_deadline(engine), sum.forwarded, sum.zero_reads, sum.faults, sum.failed, sum.dropped,
	       counts[0], counts[1], counts[2], counts[3], counts[4]);
	dump_faults(rig, engine);
	put(rig, ENTRIES);
	put(rig, segments);
	for (uint64_t i = 0; i < segments; i++) {
		put(rig, segmap_table_get(&engine->table, i));
	}
}

static void
run_look_at_plane(struct rig *rig, const uint64_t *words)
{
	const struct segmap_plane *plane = &rig->plane;

	(void)words;
	RECORD(rig, PLANE, plane->term, plane->incarnation, plane->session, segmap_lease_epoch(&plane->lease),
	       plane->lease.valid, plane->lease.deadline_ns, segmap_plane_next_deadline(plane));
}

/* The decision for flags, operation, reclaims; the state; the entry after each state command */
static void
run_decide(struct rig *rig, const uint64_t *words)
{
	struct segmap_decision decision = segmap_decide(words[0], (enum segmap_operation)words[1], words[2] != 0);

	RECORD(rig, DECISION, decision.action, decision.kind, segmap_state_of(words[0]));
}

/* entry, state, active */
static void
run_with_state(struct rig *rig, const uint64_t *words)
{
	bool allowed = segmap_state_allowed((uint32_t)words[1], words[2] != 0);

	RECORD(rig, DECISION, allowed,
	       allowed ? segmap_with_state(words[0], (enum segmap_state)words[1], words[2] != 0) : 0);
}

static void (*const commands[])(struct rig *rig, const uint64_t *words) = {
	run_submit, run_complete, run_withdraw, run_set_entries, run_set_state, run_answer, run_suspend, run_resume,
	run_grant, run_tick, run_reset, run_abort, run_admit, run_bind, run_unbind, run_create, run_remove, run_drop,
	run_table_slots, run_resize, run_begin_job, run_may_continue, run_end_job, run_look, run_look_at_plane,
	run_decide, run_with_state, run_settle, run_begin_session,
};

void
rig_run(struct rig *rig, const uint64_t *words)
{
	assert(words[0] < sizeof(commands) / sizeof(commands[0]));
	commands[words[0]](rig, words + 1);
}
