/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's messages: each is checked, done by the core, and answered, at once or when a barrier or a container I/O
 * has ended. All of this is on the owner's thread. Nothing that was received is trusted: a frame that is not exactly
 * what its type says ends the session.
 */
#include "vbdev_segmap_message.h"

#include "spdk/util.h"

/* A blocking request, until its barrier is reached. */
struct blocked {
	struct segmap_barrier barrier;
	struct segmap_frame *request;
};

void
segmap_effect_barrier(void *ctx, struct segmap_barrier *barrier, enum segmap_status status)
{
	struct blocked *blocked = SPDK_CONTAINEROF(barrier, struct blocked, barrier);

	(void)ctx;
	segmap_answer(blocked->request, status, "");
	free(blocked);
}

/* A barrier for a blocking request; *failed if there should be one and is not. */
static struct segmap_barrier *
barrier_for(const struct message *message, bool *failed)
{
	struct blocked *blocked;

	*failed = false;
	if ((message->header->flags & SEGMAP_WIRE_FLAG_BLOCKING) == 0) {
		return NULL;
	}
	blocked = calloc(1, sizeof(*blocked));
	if (blocked == NULL) {
		*failed = true;
		return NULL;
	}
	blocked->request = message->frame;
	return &blocked->barrier;
}

/* Answer a command that may be blocking: OK with a barrier is answered when that is reached. */
static enum outcome
answer_command(struct message *message, enum segmap_status status, struct segmap_barrier *barrier)
{
	if (barrier != NULL && status == SEGMAP_STATUS_OK) {
		return LATER;
	}
	if (barrier != NULL) {
		free(SPDK_CONTAINEROF(barrier, struct blocked, barrier));
	}
	return answer(message, status, "");
}

/* ---- commands ---- */

static enum outcome
on_admit(struct message *message)
{
	const struct segmap_wire_admit *body = take(message, sizeof(*body));
	const struct segmap_wire_header *header = message->header;
	enum segmap_status status;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	status = segmap_plane_admit(&g_segmap.plane, header->term, header->incarnation, body->cluster,
				    body->park_limit_ns, body->io_deadline_ns, body->lease_duration_ns,
				    header->sequence, segmap_now_ns());
	answer(message, status, "");
	if (status == SEGMAP_STATUS_OK) {
		segmap_peer_admit();
	}
	return ANSWERED;
}

static enum outcome
on_lease_grant(struct message *message)
{
	const struct segmap_wire_lease_grant *body = take(message, sizeof(*body));
	struct segmap_stamp stamp = stamp_of(message);
	enum segmap_status status;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	status = segmap_plane_grant_lease(&g_segmap.plane, &stamp, body->sent_ns, body->duration_ns, segmap_now_ns());
	if (status != SEGMAP_STATUS_OK) {
		segmap_refuse(message->frame, status);
	}
	segmap_link_done(message->frame);
	return ANSWERED;
}

static enum outcome
on_set_entries(struct message *message)
{
	const struct segmap_wire_set_entries *body = take(message, sizeof(*body));
	struct segmap_stamp stamp = stamp_of(message);
	struct segmap_barrier *barrier;
	const uint64_t *entries;
	bool failed;

	if (body == NULL) {
		return PROTOCOL;
	}
	entries = take_array(message, body->entries_count, sizeof(uint64_t), SEGMAP_WIRE_ENTRIES_MAX);
	if (!is_whole(message)) {
		return PROTOCOL;
	}
	barrier = barrier_for(message, &failed);
	if (failed) {
		return answer(message, SEGMAP_STATUS_LIMIT, "out of memory");
	}
	return answer_command(message,
			      segmap_plane_set_entries(&g_segmap.plane, &stamp, message->header->table, body->start,
						       body->count, entries, body->entries_count, barrier,
						       segmap_now_ns()), barrier);
}

static enum outcome
on_set_state(struct message *message)
{
	const struct segmap_wire_set_state *body = take(message, sizeof(*body));
	struct segmap_stamp stamp = stamp_of(message);
	struct segmap_barrier *barrier;
	bool failed;

	if (!is_whole(message) || body->state > SEGMAP_STATE_NONE || body->active > 1) {
		return PROTOCOL;
	}
	barrier = barrier_for(message, &failed);
	if (failed) {
		return answer(message, SEGMAP_STATUS_LIMIT, "out of memory");
	}
	return answer_command(message,
			      segmap_plane_set_state(&g_segmap.plane, &stamp, message->header->table, body->start,
						     body->count, body->state, body->active != 0, barrier,
						     segmap_now_ns()), barrier);
}

static enum outcome
on_suspend_or_resume(struct message *message)
{
	struct segmap_stamp stamp = stamp_of(message);
	uint64_t table = message->header->table;
	struct segmap_barrier *barrier;
	enum segmap_status status;
	bool failed;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	barrier = barrier_for(message, &failed);
	if (failed) {
		return answer(message, SEGMAP_STATUS_LIMIT, "out of memory");
	}
	if (message->header->type == SEGMAP_WIRE_SUSPEND) {
		status = segmap_plane_suspend(&g_segmap.plane, &stamp, table, barrier, segmap_now_ns());
	} else {
		status = segmap_plane_resume(&g_segmap.plane, &stamp, table, barrier, segmap_now_ns());
	}
	return answer_command(message, status, barrier);
}

static enum outcome
on_table_slots(struct message *message)
{
	const struct segmap_wire_table_slots *body = take(message, sizeof(*body));
	struct segmap_engine *engine = segmap_plane_find(&g_segmap.plane, message->header->table);
	struct segmap_stamp stamp = stamp_of(message);
	struct segmap_slots slots = { { 0 } }, before;
	enum segmap_status status;
	const uint64_t *numbers;
	char detail[SEGMAP_DETAIL_BYTES] = "";

	if (body == NULL) {
		return PROTOCOL;
	}
	numbers = take_array(message, body->slots_count, sizeof(uint64_t), SEGMAP_WIRE_SLOTS_MAX);
	take_array(message, body->absent_count, sizeof(uint64_t), SEGMAP_WIRE_SLOTS_MAX);
	if (!is_whole(message)) {
		return PROTOCOL;
	}
	for (uint32_t i = 0; i < body->slots_count; i++) {
		if (numbers[i] > SEGMAP_WIRE_SLOT_MAX) {
			return answer(message, SEGMAP_STATUS_NO_CONTAINER, "");
		}
		segmap_slots_add(&slots, (uint32_t)numbers[i]);
	}
	if (engine != NULL && !segmap_slots_fit(&engine->geometry, &slots, detail)) {
		return answer(message, SEGMAP_STATUS_FORBIDDEN, detail);
	}
	before = engine != NULL ? engine->slots : slots;
	status = segmap_plane_table_slots(&g_segmap.plane, &stamp, message->header->table, &slots,
					  body->absent_count != 0, segmap_now_ns());
	for (uint32_t slot = 0; status == SEGMAP_STATUS_OK && slot < SEGMAP_SLOTS; slot++) {
		if (segmap_slots_have(&slots, slot) && !segmap_slots_have(&before, slot)) {
			segmap_watch_slot(SPDK_CONTAINEROF(engine, struct segmap_disk, engine), slot);
		}
	}
	return answer(message, status, "");
}

/* Each record with the entries it takes; false if the entries are not exactly used up, or short. */
static bool
read_answers(const struct segmap_wire_answer *records, uint32_t count, const uint64_t *entries, uint32_t entry_count,
	     struct segmap_answer *answers)
{
	uint32_t used = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct segmap_wire_answer *record = &records[i];
		bool replaces = record->action == SEGMAP_ANSWER_REPLACE;

		if (replaces && record->count > entry_count - used) {
			return false;
		}
		answers[i] = (struct segmap_answer) {
			.fault_id = record->fault_id,
			.action = record->action,
			.status = record->status,
			.start = record->start,
			.count = record->count,
			.entries = replaces ? entries + used : NULL,
			.length = replaces ? record->count : 0,
		};
		used += replaces ? record->count : 0;
	}
	return used == entry_count;
}

static enum outcome
on_fault_answer(struct message *message)
{
	static struct segmap_answer answers[SEGMAP_WIRE_ANSWERS_MAX];
	const struct segmap_wire_fault_answer *body = take(message, sizeof(*body));
	struct segmap_stamp stamp = stamp_of(message);
	const struct segmap_wire_answer *records;
	const uint64_t *entries;
	enum segmap_status status;

	if (body == NULL) {
		return PROTOCOL;
	}
	records = take_array(message, body->answers_count, sizeof(*records), SEGMAP_WIRE_ANSWERS_MAX);
	entries = take_array(message, body->entries_count, sizeof(uint64_t), SEGMAP_WIRE_ENTRIES_MAX);
	if (!is_whole(message) || !read_answers(records, body->answers_count, entries, body->entries_count, answers)) {
		return PROTOCOL;
	}
	status = segmap_plane_answer_faults(&g_segmap.plane, &stamp, message->header->table, answers,
					    body->answers_count, segmap_now_ns());
	if (status != SEGMAP_STATUS_OK) {
		segmap_refuse(message->frame, status);
	}
	segmap_link_done(message->frame);
	return ANSWERED;
}

/* ---- containers ---- */

static enum outcome
on_bind_slot(struct message *message)
{
	const struct segmap_wire_bind_slot *body = take(message, sizeof(*body));
	char name[SEGMAP_WIRE_NAME_BYTES_MAX + 1] = "";
	const char *text;

	if (body == NULL) {
		return PROTOCOL;
	}
	text = take_array(message, body->bdev_name_length, 1, SEGMAP_WIRE_NAME_BYTES_MAX);
	if (!is_whole(message) || memchr(text, '\0', body->bdev_name_length) != NULL ||
	    body->slot > SEGMAP_WIRE_SLOT_MAX ||
	    (body->flags & ~(SEGMAP_ATTACH_INITIALIZE | SEGMAP_ATTACH_FORCE | SEGMAP_ATTACH_RENEW |
			     SEGMAP_ATTACH_ENDED)) != 0) {
		return PROTOCOL;
	}
	memcpy(name, text, body->bdev_name_length);
	segmap_bind_slot(message->frame, body, name);
	return LATER;
}

static enum outcome
on_unbind_slot(struct message *message)
{
	const struct segmap_wire_unbind_slot *body = take(message, sizeof(*body));

	if (!is_whole(message) || body->slot > SEGMAP_WIRE_SLOT_MAX) {
		return PROTOCOL;
	}
	segmap_unbind_slot(message->frame, body->slot);
	return ANSWERED;
}

static enum outcome
on_copy_segments(struct message *message)
{
	const struct segmap_wire_copy_segments *body = take(message, sizeof(*body));
	const struct segmap_wire_segment_copy *copies;

	if (body == NULL) {
		return PROTOCOL;
	}
	copies = take_array(message, body->copies_count, sizeof(*copies), SEGMAP_WIRE_COPIES_MAX);
	if (!is_whole(message)) {
		return PROTOCOL;
	}
	segmap_copy_segments(message->frame, copies, body->copies_count);
	return LATER;
}

static enum outcome
on_zero_segments(struct message *message)
{
	const struct segmap_wire_zero_segments *body = take(message, sizeof(*body));
	const struct segmap_wire_segment_run *runs;

	if (body == NULL) {
		return PROTOCOL;
	}
	runs = take_array(message, body->runs_count, sizeof(*runs), SEGMAP_WIRE_RUNS_MAX);
	if (!is_whole(message)) {
		return PROTOCOL;
	}
	segmap_zero_segments(message->frame, runs, body->runs_count);
	return LATER;
}

static enum outcome
on_goodbye(struct message *message)
{
	segmap_link_done(message->frame);
	segmap_peer_leave();
	return ANSWERED;
}

/* ---- dispatch ---- */

struct rule {
	enum outcome (*handle)(struct message *message);
	bool request; /* is answered, and bears a request id */
	bool blocking; /* may be */
	bool early; /* before ADMIT too */
};

static const struct rule rules[] = {
	[SEGMAP_WIRE_LEASE_GRANT] = { .handle = on_lease_grant, .early = true },
	[SEGMAP_WIRE_GOODBYE] = { .handle = on_goodbye, .early = true },
	[SEGMAP_WIRE_GET_ENTRIES] = { .handle = segmap_on_get_entries, .request = true },
	[SEGMAP_WIRE_SET_ENTRIES] = { .handle = on_set_entries, .request = true, .blocking = true },
	[SEGMAP_WIRE_GET_STATE] = { .handle = segmap_on_get_state, .request = true },
	[SEGMAP_WIRE_SET_STATE] = { .handle = on_set_state, .request = true, .blocking = true },
	[SEGMAP_WIRE_TABLE_SLOTS] = { .handle = on_table_slots, .request = true },
	[SEGMAP_WIRE_SUSPEND] = { .handle = on_suspend_or_resume, .request = true, .blocking = true },
	[SEGMAP_WIRE_RESUME] = { .handle = on_suspend_or_resume, .request = true, .blocking = true },
	[SEGMAP_WIRE_GET_PARKED] = { .handle = segmap_on_get_parked, .request = true, .early = true },
	[SEGMAP_WIRE_BIND_SLOT] = { .handle = on_bind_slot, .request = true },
	[SEGMAP_WIRE_UNBIND_SLOT] = { .handle = on_unbind_slot, .request = true },
	[SEGMAP_WIRE_COPY_SEGMENTS] = { .handle = on_copy_segments, .request = true },
	[SEGMAP_WIRE_ZERO_SEGMENTS] = { .handle = on_zero_segments, .request = true },
	[SEGMAP_WIRE_FAULT_ANSWER] = { .handle = on_fault_answer, .early = true },
	[SEGMAP_WIRE_ADMIT] = { .handle = on_admit, .request = true, .early = true },
	[SEGMAP_WIRE_TABLE_STATUS] = { .handle = segmap_on_table_status, .request = true, .early = true },
};

static const struct rule *
rule_of(uint16_t type)
{
	return type < SPDK_COUNTOF(rules) && rules[type].handle != NULL ? &rules[type] : NULL;
}

static bool
is_spoken(const struct segmap_wire_header *header)
{
	return header->type == SEGMAP_WIRE_GOODBYE ||
	       (header->version >= SEGMAP_WIRE_VERSION_MIN && header->version <= SEGMAP_WIRE_VERSION);
}

/* NULL, or what is wrong with the header. */
static const char *
header_fault(const struct segmap_wire_header *header, const struct rule *rule)
{
	if (rule == NULL) {
		return "header.type: not for a data plane";
	}
	if ((header->flags & ~(rule->blocking ? SEGMAP_WIRE_FLAG_BLOCKING : 0u)) != 0) {
		return "header.flags: not of this type";
	}
	return (header->request_id != 0) != rule->request ? "header.request_id: not of this type" : NULL;
}

static void
handle(struct segmap_frame *frame)
{
	struct message message = {
		.frame = frame,
		.header = segmap_frame_header(frame),
		.at = frame->data + SEGMAP_WIRE_HEADER_BYTES,
		.left = frame->length - SEGMAP_WIRE_HEADER_BYTES,
	};
	const struct rule *rule = rule_of(message.header->type);
	const char *fault = header_fault(message.header, rule);

	if (!is_spoken(message.header)) {
		segmap_goodbye(SEGMAP_STATUS_BAD_VERSION, "header.version: not spoken by this data plane");
		segmap_link_done(frame);
		return;
	}
	segmap_peer_speaks(message.header);
	if (fault != NULL) {
		segmap_goodbye(SEGMAP_STATUS_BAD_MESSAGE, fault);
		segmap_link_done(frame);
	} else if (!segmap_peer_admitted() && !rule->early) {
		segmap_answer(frame, SEGMAP_STATUS_NOT_ADMITTED, "ADMIT comes first");
	} else if (rule->handle(&message) == PROTOCOL) {
		segmap_goodbye(SEGMAP_STATUS_BAD_MESSAGE, "body: not what the type says");
		segmap_link_done(frame);
	}
}

void
segmap_peer_frame(void *ctx)
{
	struct segmap_frame *frame = ctx;

	if (segmap_peer_is(frame->peer)) {
		handle(frame);
	} else {
		segmap_link_done(frame);
	}
}
