/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's messages: each is checked, done by the core, and answered, at once or when a barrier or a container I/O
 * has ended. All of this is on the owner's thread. Nothing that was received is trusted: a frame that is not exactly
 * what its type says ends the session.
 */
#include "vbdev_segmap_session.h"

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

/* ---- receiving: the shape of a frame ---- */

struct message {
	struct segmap_frame *frame;
	const struct segmap_wire_header *header;
	const uint8_t *at; /* what has not been looked at yet */
	uint32_t left;
	bool bad;
};

/* The next `length` bytes and their padding; NULL, and the message is bad, if they are not all there. */
static const void *
take(struct message *message, uint64_t length)
{
	const uint8_t *at = message->at;
	uint64_t whole = (length + 7) / 8 * 8;

	if (message->bad || whole > message->left) {
		message->bad = true;
		return NULL;
	}
	for (uint64_t i = length; i < whole; i++) {
		message->bad = message->bad || at[i] != 0;
	}
	message->at += whole;
	message->left -= (uint32_t)whole;
	return message->bad ? NULL : at;
}

/* `count` records of `size` bytes, at most `limit`. */
static const void *
take_array(struct message *message, uint32_t count, uint32_t size, uint32_t limit)
{
	if (count > limit) {
		message->bad = true;
		return NULL;
	}
	return take(message, (uint64_t)count * size);
}

/* All that we know of it is there. More may follow, which a newer version has appended: it is ignored. */
static bool
is_whole(const struct message *message)
{
	return !message->bad;
}

/* What comes of a message. PROTOCOL: the peer has not kept to the format, the session ends. */
enum outcome { ANSWERED, LATER, PROTOCOL };

static struct segmap_stamp
stamp_of(const struct message *message)
{
	return segmap_frame_stamp(message->frame);
}

static enum outcome
answer(struct message *message, enum segmap_status status, const char *detail)
{
	segmap_answer(message->frame, status, detail);
	return ANSWERED;
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

/* ---- reading ---- */

/* The table that a read of entries means, if the stamp and the range are good. */
static enum segmap_status
find_range(struct message *message, uint64_t start, uint64_t count, const struct segmap_engine **engine)
{
	struct segmap_stamp stamp = stamp_of(message);
	enum segmap_status status;

	segmap_plane_tick(&g_segmap.plane, segmap_now_ns());
	status = segmap_plane_check(&g_segmap.plane, &stamp);
	if (status != SEGMAP_STATUS_OK) {
		return status;
	}
	*engine = segmap_plane_find(&g_segmap.plane, message->header->table);
	if (*engine == NULL || !(*engine)->present) {
		return SEGMAP_STATUS_NO_TABLE;
	}
	return segmap_table_in_range(&(*engine)->table, start, count) ? SEGMAP_STATUS_OK : SEGMAP_STATUS_OUT_OF_RANGE;
}

static enum outcome
on_get_entries(struct message *message)
{
	const struct segmap_wire_get_entries *body = take(message, sizeof(*body));
	const struct segmap_engine *engine = NULL;
	struct segmap_frame *response;
	enum segmap_status status;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	status = find_range(message, body->start, body->count, &engine);
	if (status == SEGMAP_STATUS_OK && body->count > SEGMAP_WIRE_ENTRIES_MAX) {
		status = SEGMAP_STATUS_LIMIT;
	}
	if (status != SEGMAP_STATUS_OK) {
		return answer(message, status, "");
	}
	response = segmap_new_response(message->frame, (uint32_t)(sizeof(struct segmap_wire_entries_read) +
							   body->count * sizeof(uint64_t)));
	if (response != NULL) {
		struct segmap_wire_entries_read *read = segmap_frame_body(response);

		read->entries_count = (uint32_t)body->count;
		segmap_table_copy(&engine->table, body->start, body->count, (uint64_t *)(read + 1));
		segmap_link_send(response);
	}
	segmap_link_done(message->frame);
	return ANSWERED;
}

static enum outcome
on_get_state(struct message *message)
{
	const struct segmap_wire_get_state *body = take(message, sizeof(*body));
	const struct segmap_engine *engine = NULL;
	struct segmap_frame *response;
	enum segmap_status status;
	uint32_t bytes;

	if (!is_whole(message) || body->state > SEGMAP_STATE_NONE) {
		return PROTOCOL;
	}
	status = find_range(message, body->start, body->count, &engine);
	if (status == SEGMAP_STATUS_OK && body->count > 8 * SEGMAP_WIRE_STATE_BITS_BYTES_MAX) {
		status = SEGMAP_STATUS_LIMIT;
	}
	if (status != SEGMAP_STATUS_OK) {
		return answer(message, status, "");
	}
	bytes = (uint32_t)(body->count + 7) / 8;
	response = segmap_new_response(message->frame, (uint32_t)sizeof(struct segmap_wire_state_read) + bytes);
	if (response != NULL) {
		struct segmap_wire_state_read *read = segmap_frame_body(response);
		uint8_t *bits = (uint8_t *)(read + 1);

		read->bits_length = bytes;
		for (uint64_t i = 0; i < body->count; i++) {
			uint64_t entry = segmap_table_get(&engine->table, body->start + i);

			bits[i / 8] |= (uint8_t)((segmap_state_of(entry) == body->state) << (i % 8));
		}
		segmap_link_send(response);
	}
	segmap_link_done(message->frame);
	return ANSWERED;
}

/* With a sequence it begins a session with a controller; the response's epoch bears the number of that. */
static enum outcome
on_table_status(struct message *message)
{
	struct segmap_plane *plane = &g_segmap.plane;
	const struct segmap_engine *engine;
	struct segmap_frame *response;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	if (message->header->sequence != 0 && segmap_plane_begin_session(plane) != SEGMAP_STATUS_OK) {
		return answer(message, SEGMAP_STATUS_LIMIT, "no session number is left");
	}
	response = segmap_new_response(message->frame,
				(uint32_t)(sizeof(struct segmap_wire_tables_read) +
					   plane->table_count * sizeof(struct segmap_wire_table_sequence)));
	if (response != NULL) {
		struct segmap_wire_tables_read *read = segmap_frame_body(response);
		struct segmap_wire_table_sequence *record = (struct segmap_wire_table_sequence *)(read + 1);

		if (message->header->sequence != 0) {
			((struct segmap_wire_header *)response->data)->epoch =
				segmap_numbered(segmap_lease_epoch(&plane->lease), plane->session);
		}
		read->tables_count = plane->table_count;
		TAILQ_FOREACH(engine, &plane->engines, link) {
			*record++ = (struct segmap_wire_table_sequence) { engine->table_id, engine->sequence };
		}
		segmap_link_send(response);
	}
	segmap_link_done(message->frame);
	return ANSWERED;
}

/* ---- what is parked ---- */

/* Groups of parked parts by segment, operation, kind and state, oldest first. */
struct parked_list {
	uint64_t now_ns;
	uint64_t table;
	uint32_t count;
	struct segmap_wire_parked *records;
};

static bool
is_of_group(const struct segmap_wire_parked *group, const struct segmap_wire_parked *record)
{
	return group->table == record->table && group->segment == record->segment &&
	       group->operation == record->operation && group->kind == record->kind && group->state == record->state;
}

static void
list_parked(void *ctx, const struct segmap_part *part)
{
	struct parked_list *list = ctx;
	uint64_t since_ns = list->now_ns > part->parked_ns ? list->now_ns - part->parked_ns : 0;
	struct segmap_wire_parked record = {
		.table = list->table,
		.segment = part->segment,
		.since_ns_ago = since_ns,
		.count = 1,
		.operation = (uint8_t)part->operation,
		.kind = part->fault != NULL ? (uint8_t)part->fault->kind : 0,
		.state = part->fault != NULL ? (uint8_t)part->fault->state : 0,
	};

	/* Parts of a fault come one after the other: their group is the last one, or near. */
	for (uint32_t i = list->count; i > 0 && i + 8 > list->count; i--) {
		struct segmap_wire_parked *group = &list->records[i - 1];

		if (is_of_group(group, &record)) {
			group->count++;
			group->since_ns_ago = spdk_max(group->since_ns_ago, since_ns);
			return;
		}
	}
	if (list->count < SEGMAP_WIRE_PARKED_MAX) {
		list->records[list->count++] = record;
	}
}

static int
older_first(const void *a, const void *b)
{
	const struct segmap_wire_parked *left = a, *right = b;

	return (left->since_ns_ago < right->since_ns_ago) - (left->since_ns_ago > right->since_ns_ago);
}

static enum outcome
on_get_parked(struct message *message)
{
	static struct segmap_wire_parked records[SEGMAP_WIRE_PARKED_MAX];
	struct parked_list list = { .now_ns = segmap_now_ns(), .records = records };
	uint64_t table = message->header->table;
	const struct segmap_engine *engine;
	struct segmap_frame *response;

	if (!is_whole(message)) {
		return PROTOCOL;
	}
	if (table != 0 && segmap_plane_find(&g_segmap.plane, table) == NULL) {
		return answer(message, SEGMAP_STATUS_NO_TABLE, "");
	}
	TAILQ_FOREACH(engine, &g_segmap.plane.engines, link) {
		if (table == 0 || table == engine->table_id) {
			list.table = engine->table_id;
			segmap_engine_each_parked(engine, list_parked, &list);
		}
	}
	qsort(records, list.count, sizeof(records[0]), older_first);
	response = segmap_new_response(message->frame, (uint32_t)(sizeof(struct segmap_wire_parked_read) +
							   list.count * sizeof(records[0])));
	if (response != NULL) {
		struct segmap_wire_parked_read *read = segmap_frame_body(response);

		read->parked_count = list.count;
		memcpy(read + 1, records, list.count * sizeof(records[0]));
		segmap_link_send(response);
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
	[SEGMAP_WIRE_GET_ENTRIES] = { .handle = on_get_entries, .request = true },
	[SEGMAP_WIRE_SET_ENTRIES] = { .handle = on_set_entries, .request = true, .blocking = true },
	[SEGMAP_WIRE_GET_STATE] = { .handle = on_get_state, .request = true },
	[SEGMAP_WIRE_SET_STATE] = { .handle = on_set_state, .request = true, .blocking = true },
	[SEGMAP_WIRE_TABLE_SLOTS] = { .handle = on_table_slots, .request = true },
	[SEGMAP_WIRE_SUSPEND] = { .handle = on_suspend_or_resume, .request = true, .blocking = true },
	[SEGMAP_WIRE_RESUME] = { .handle = on_suspend_or_resume, .request = true, .blocking = true },
	[SEGMAP_WIRE_GET_PARKED] = { .handle = on_get_parked, .request = true, .early = true },
	[SEGMAP_WIRE_BIND_SLOT] = { .handle = on_bind_slot, .request = true },
	[SEGMAP_WIRE_UNBIND_SLOT] = { .handle = on_unbind_slot, .request = true },
	[SEGMAP_WIRE_COPY_SEGMENTS] = { .handle = on_copy_segments, .request = true },
	[SEGMAP_WIRE_ZERO_SEGMENTS] = { .handle = on_zero_segments, .request = true },
	[SEGMAP_WIRE_FAULT_ANSWER] = { .handle = on_fault_answer, .early = true },
	[SEGMAP_WIRE_ADMIT] = { .handle = on_admit, .request = true, .early = true },
	[SEGMAP_WIRE_TABLE_STATUS] = { .handle = on_table_status, .request = true, .early = true },
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
