/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the handlers of messages (vbdev_segmap_messages.c) use of the session (vbdev_segmap_session.c). The owner's.
 */
#ifndef VBDEV_SEGMAP_SESSION_H
#define VBDEV_SEGMAP_SESSION_H

#include "vbdev_segmap_socket.h"

static inline void *
segmap_frame_body(struct segmap_frame *frame)
{
	return frame->data + SEGMAP_WIRE_HEADER_BYTES;
}

/* A response to a request, to be filled in and sent; NULL if it is not wanted any more, or out of memory. */
struct segmap_frame *segmap_new_response(const struct segmap_frame *request, uint32_t body_bytes);

/* Refuse a message that has no response. */
void segmap_refuse(const struct segmap_frame *notice, enum segmap_status status);

/* End the session: with a last word, or without. */
void segmap_goodbye(enum segmap_status status, const char *detail);
void segmap_peer_leave(void);

/* The peer has been admitted: send all outstanding faults. */
void segmap_peer_admit(void);

/* A frame of the peer says which version was chosen. */
void segmap_peer_speaks(const struct segmap_wire_header *header);

/* True if the peer of this number is the present one. */
bool segmap_peer_is(uint64_t number);

#endif
