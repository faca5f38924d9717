/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The session with the daemon: who the peer is, what is sent to it, and in what form. On the owner's thread.
 *
 * An answer whose session has ended goes nowhere. Faults go to an admitted session only, those of one turn of the loop
 * together; all that are outstanding go up again when a session is admitted.
 */
#include "vbdev_segmap_session.h"

#include "spdk/log.h"

#define SOFTWARE "segmap bdev module, " SPDK_VERSION_STRING

static struct {
	uint64_t number; /* 0: nobody is there */
	bool admitted;
	bool flush_pending;
	uint8_t version; /* of the channel, that the peer has chosen */
	uint32_t fault_count;
	struct segmap_wire_fault faults[SEGMAP_WIRE_FAULTS_MAX];
} g_peer;

/* ---- sending ---- */

static uint32_t
padded(uint32_t length)
{
	return (length + 7) / 8 * 8;
}

/* What begins and ends a session is the same in all versions. */
static uint8_t
version_of(enum segmap_wire_type type)
{
	return type == SEGMAP_WIRE_DP_HELLO || type == SEGMAP_WIRE_GOODBYE ? SEGMAP_WIRE_HANDSHAKE_VERSION : g_peer.version;
}

void
segmap_peer_speaks(const struct segmap_wire_header *header)
{
	if (header->type != SEGMAP_WIRE_GOODBYE) {
		g_peer.version = header->version;
	}
}

/* A frame to the peer with the plane's own stamps; NULL if out of memory. */
static struct segmap_frame *
new_frame(enum segmap_wire_type type, uint32_t body_bytes)
{
	struct segmap_frame *frame = segmap_frame_new(SEGMAP_WIRE_HEADER_BYTES + padded(body_bytes));
	struct segmap_wire_header *header;

	if (frame == NULL) {
		SPDK_ERRLOG("out of memory: the session ends\n");
		segmap_link_close(g_peer.number);
		return NULL;
	}
	frame->peer = g_peer.number;
	header = (struct segmap_wire_header *)frame->data;
	*header = (struct segmap_wire_header) {
		.length = frame->length,
		.type = (uint16_t)type,
		.version = version_of(type),
		.term = g_segmap.plane.term,
		.incarnation = g_segmap.plane.incarnation,
		.epoch = segmap_lease_epoch(&g_segmap.plane.lease),
	};
	return frame;
}

/* A response to a request, with the request's stamps (but ADMIT's: the plane's); NULL if it is not wanted any more. */
struct segmap_frame *
segmap_new_response(const struct segmap_frame *request, uint32_t body_bytes)
{
	const struct segmap_wire_header *asked = segmap_frame_header(request);
	struct segmap_frame *frame;
	struct segmap_wire_header *header;

	if (request->peer != g_peer.number) {
		return NULL;
	}
	frame = new_frame(asked->type, body_bytes);
	if (frame == NULL) {
		return NULL;
	}
	header = (struct segmap_wire_header *)frame->data;
	header->flags = SEGMAP_WIRE_FLAG_RESPONSE;
	header->request_id = asked->request_id;
	if (asked->type != SEGMAP_WIRE_ADMIT) {
		header->term = asked->term;
		header->incarnation = asked->incarnation;
		header->epoch = asked->epoch;
		header->table = asked->table;
		header->sequence = asked->sequence;
	}
	return frame;
}

/* The fixed part of a response's body, by the request's type. All begin with status and length of detail. */
static uint32_t
response_bytes(uint16_t type)
{
	switch (type) {
	case SEGMAP_WIRE_GET_ENTRIES:
		return sizeof(struct segmap_wire_entries_read);
	case SEGMAP_WIRE_GET_STATE:
		return sizeof(struct segmap_wire_state_read);
	case SEGMAP_WIRE_GET_PARKED:
		return sizeof(struct segmap_wire_parked_read);
	case SEGMAP_WIRE_TABLE_STATUS:
		return sizeof(struct segmap_wire_tables_read);
	case SEGMAP_WIRE_ATTACH_CONTAINER:
	case SEGMAP_WIRE_BIND_SLOT:
		return sizeof(struct segmap_wire_attached);
	case SEGMAP_WIRE_PRESENT:
		return sizeof(struct segmap_wire_presented);
	case SEGMAP_WIRE_HELLO:
		return sizeof(struct segmap_wire_welcome);
	default:
		return sizeof(struct segmap_wire_done);
	}
}

void
segmap_answer(struct segmap_frame *request, enum segmap_status status, const char *detail)
{
	uint32_t fixed = response_bytes(segmap_frame_header(request)->type);
	uint32_t length = (uint32_t)strnlen(detail, SEGMAP_WIRE_DETAIL_BYTES_MAX);
	struct segmap_frame *response = segmap_new_response(request, fixed + length);

	if (response != NULL) {
		struct segmap_wire_done *body = segmap_frame_body(response);

		body->status = status;
		body->detail_length = length;
		memcpy((uint8_t *)body + fixed, detail, length);
		segmap_link_send(response);
	}
	segmap_link_done(request);
}

void
segmap_answer_attached(struct segmap_frame *request, uint64_t segment_count, uint32_t block_size, bool volatile_cache)
{
	struct segmap_frame *response = segmap_new_response(request, sizeof(struct segmap_wire_attached));

	if (response != NULL) {
		*(struct segmap_wire_attached *)segmap_frame_body(response) = (struct segmap_wire_attached) {
			.segment_count = segment_count,
			.block_size = block_size,
			.volatile_cache = volatile_cache,
		};
		segmap_link_send(response);
	}
	segmap_link_done(request);
}

void
segmap_goodbye(enum segmap_status status, const char *detail)
{
	uint32_t length = (uint32_t)strlen(detail);
	struct segmap_frame *frame = new_frame(SEGMAP_WIRE_GOODBYE, sizeof(struct segmap_wire_goodbye) + length);

	if (frame != NULL) {
		struct segmap_wire_goodbye *body = segmap_frame_body(frame);

		body->status = status;
		body->detail_length = length;
		memcpy(body + 1, detail, length);
		segmap_link_send(frame);
	}
	segmap_peer_leave();
}

void
segmap_refuse(const struct segmap_frame *notice, enum segmap_status status)
{
	const struct segmap_wire_header *refused = segmap_frame_header(notice);
	struct segmap_frame *frame = new_frame(SEGMAP_WIRE_REFUSED, sizeof(struct segmap_wire_refused));

	if (frame != NULL) {
		struct segmap_wire_header *header = (struct segmap_wire_header *)frame->data;
		struct segmap_wire_refused *body = segmap_frame_body(frame);

		header->term = refused->term;
		header->incarnation = refused->incarnation;
		header->epoch = refused->epoch;
		header->table = refused->table;
		header->sequence = refused->sequence;
		body->status = status;
		body->refused_type = refused->type;
		segmap_link_send(frame);
	}
}

/* ---- faults ---- */

static void
send_faults(void)
{
	uint32_t bytes = g_peer.fault_count * (uint32_t)sizeof(g_peer.faults[0]);
	struct segmap_frame *frame;

	if (g_peer.fault_count == 0 || !g_peer.admitted) {
		g_peer.fault_count = 0;
		return;
	}
	frame = new_frame(SEGMAP_WIRE_MAP_FAULT, sizeof(struct segmap_wire_map_fault) + bytes);
	if (frame != NULL) {
		struct segmap_wire_map_fault *body = segmap_frame_body(frame);

		body->faults_count = g_peer.fault_count;
		memcpy(body + 1, g_peer.faults, bytes);
		segmap_link_send(frame);
	}
	g_peer.fault_count = 0;
}

static void
flush_faults(void *ctx)
{
	(void)ctx;
	g_peer.flush_pending = false;
	send_faults();
}

/* Faults of one turn of the owner's loop leave together. */
void
segmap_effect_fault(void *ctx, const struct segmap_fault *fault)
{
	static struct segmap_message message;

	(void)ctx;
	if (!g_peer.admitted) {
		return;
	}
	if (g_peer.fault_count == SEGMAP_WIRE_FAULTS_MAX) {
		send_faults();
	}
	g_peer.faults[g_peer.fault_count++] = (struct segmap_wire_fault) {
		.fault_id = fault->fault_id,
		.table = fault->table,
		.segment = fault->segment,
		.entry = fault->entry,
		.operation = (uint8_t)fault->operation,
		.kind = (uint8_t)fault->kind,
		.state = (uint8_t)fault->state,
		.offset_blocks = fault->offset_blocks,
		.length_blocks = fault->length_blocks,
	};
	if (!g_peer.flush_pending) {
		g_peer.flush_pending = true;
		segmap_tell_owner(&message, flush_faults, NULL);
	}
}

void
segmap_peer_admit(void)
{
	const struct segmap_engine *engine;
	const struct segmap_fault *fault;

	g_peer.admitted = true;
	g_peer.fault_count = 0;
	TAILQ_FOREACH(engine, &g_segmap.plane.engines, link) {
		TAILQ_FOREACH(fault, &engine->faults.outstanding, link) {
			segmap_effect_fault(NULL, fault);
		}
	}
}

void
segmap_effect_epoch(void *ctx, uint64_t epoch)
{
	struct segmap_frame *frame;

	(void)ctx;
	(void)epoch;
	if (g_peer.number == 0 || (frame = new_frame(SEGMAP_WIRE_EPOCH, sizeof(struct segmap_wire_epoch))) == NULL) {
		return;
	}
	((struct segmap_wire_epoch *)segmap_frame_body(frame))->reason = SEGMAP_STATUS_LEASE_EXPIRED;
	segmap_link_send(frame);
}

/* ---- the peer ---- */

static void
send_hello(void)
{
	uint32_t tables = g_segmap.plane.table_count, software = padded(sizeof(SOFTWARE) - 1);
	struct segmap_frame *frame = new_frame(SEGMAP_WIRE_DP_HELLO,
					       (uint32_t)(sizeof(struct segmap_wire_dp_hello) + software +
							  tables * sizeof(struct segmap_wire_table_sequence)));
	struct segmap_wire_table_sequence *record;
	struct segmap_wire_dp_hello *body;
	const struct segmap_engine *engine;

	if (frame == NULL) {
		return;
	}
	body = segmap_frame_body(frame);
	body->version_min = SEGMAP_WIRE_VERSION_MIN;
	body->version_max = SEGMAP_WIRE_VERSION;
	memcpy(body->instance, g_segmap.plane.instance, sizeof(body->instance));
	body->software_length = sizeof(SOFTWARE) - 1;
	body->tables_count = tables;
	memcpy(body + 1, SOFTWARE, sizeof(SOFTWARE) - 1);
	record = (struct segmap_wire_table_sequence *)((uint8_t *)(body + 1) + software);
	TAILQ_FOREACH(engine, &g_segmap.plane.engines, link) {
		*record++ = (struct segmap_wire_table_sequence) { engine->table_id, engine->sequence };
	}
	segmap_link_send(frame);
}

void
segmap_peer_came(uint64_t peer)
{
	g_peer.number = peer;
	g_peer.version = SEGMAP_WIRE_VERSION_MIN;
	g_peer.admitted = false;
	g_peer.fault_count = 0;
	send_hello();
}

void
segmap_peer_gone(uint64_t peer)
{
	if (g_peer.number == peer) {
		g_peer.number = 0;
		g_peer.admitted = false;
	}
}

void
segmap_peer_leave(void)
{
	uint64_t number = g_peer.number;

	g_peer.number = 0;
	g_peer.admitted = false;
	segmap_link_close(number);
}

bool
segmap_peer_is(uint64_t number)
{
	return number == g_peer.number;
}

bool
segmap_peer_admitted(void)
{
	return g_peer.admitted;
}
