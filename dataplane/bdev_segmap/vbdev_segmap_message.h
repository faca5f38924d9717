/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A message of the daemon that is being looked at, and what comes of it. Nothing that was received is trusted.
 */
#ifndef VBDEV_SEGMAP_MESSAGE_H
#define VBDEV_SEGMAP_MESSAGE_H

#include "vbdev_segmap_session.h"

struct message {
	struct segmap_frame *frame;
	const struct segmap_wire_header *header;
	const uint8_t *at; /* what has not been looked at yet */
	uint32_t left;
	bool bad;
};

/* The next `length` bytes and their padding; NULL, and the message is bad, if they are not all there. */
static inline const void *
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
static inline const void *
take_array(struct message *message, uint32_t count, uint32_t size, uint32_t limit)
{
	if (count > limit) {
		message->bad = true;
		return NULL;
	}
	return take(message, (uint64_t)count * size);
}

/* All that we know of it is there. More may follow, which a newer version has appended: it is ignored. */
static inline bool
is_whole(const struct message *message)
{
	return !message->bad;
}

/* What comes of a message. PROTOCOL: the peer has not kept to the format, the session ends. */
enum outcome { ANSWERED, LATER, PROTOCOL };

static inline struct segmap_stamp
stamp_of(const struct message *message)
{
	return segmap_frame_stamp(message->frame);
}

static inline enum outcome
answer(struct message *message, enum segmap_status status, const char *detail)
{
	segmap_answer(message->frame, status, detail);
	return ANSWERED;
}

/* Reading (vbdev_segmap_reading.c). */
enum outcome segmap_on_get_entries(struct message *message);
enum outcome segmap_on_get_state(struct message *message);
enum outcome segmap_on_table_status(struct message *message);
enum outcome segmap_on_get_parked(struct message *message);

#endif
