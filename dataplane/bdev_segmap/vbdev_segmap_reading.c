/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's questions: entries, states, the sequences of tables, and what is parked. They change nothing. All of this
 * is on the owner's thread.
 */
#include "vbdev_segmap_message.h"

#include "spdk/util.h"

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

enum outcome
segmap_on_get_entries(struct message *message)
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

enum outcome
segmap_on_get_state(struct message *message)
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
enum outcome
segmap_on_table_status(struct message *message)
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

enum outcome
segmap_on_get_parked(struct message *message)
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
