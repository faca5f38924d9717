/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data plane's Unix socket (vbdev_segmap_socket.c), and what comes over it (vbdev_segmap_messages.c).
 *
 * The socket has one peer, the newest. Peers have numbers; what was meant for an older one goes nowhere. A frame is
 * handed over whole: to the owner with a message, to the socket's thread through a bounded queue.
 */
#ifndef VBDEV_SEGMAP_SOCKET_H
#define VBDEV_SEGMAP_SOCKET_H

#include "vbdev_segmap.h"

struct segmap_frame {
	TAILQ_ENTRY(segmap_frame) link;
	struct segmap_message message;
	uint64_t peer;
	uint32_t length;
	uint32_t written;
	uint8_t data[]; /* a struct segmap_wire_header and a body, 8-byte aligned */
};

/* Where to listen; before the module starts. NULL: what SEGMAP_DATAPLANE_SOCKET says, if anything. */
void segmap_link_set_path(const char *path);

/* 0 or -errno. Without a path there is no socket. */
int segmap_link_start(void);
void segmap_link_stop(void);

/* A zeroed frame of `length` bytes (a multiple of 8), or NULL. */
struct segmap_frame *segmap_frame_new(uint32_t length);

/* Send a frame to the peer it names, and forget it. A peer that does not read is cut off. */
void segmap_link_send(struct segmap_frame *frame);
/* Close the connection once everything queued has been written. */
void segmap_link_close(uint64_t peer);
/* A received frame has been dealt with: it is freed, and another one may be read. */
void segmap_link_done(struct segmap_frame *frame);

/* ---- called on the owner's thread ---- */

void segmap_peer_came(uint64_t peer);
void segmap_peer_gone(uint64_t peer);
void segmap_peer_frame(void *frame);

bool segmap_peer_admitted(void);
/* The core's effects that are told to the peer. */
void segmap_effect_fault(void *ctx, const struct segmap_fault *fault);
void segmap_effect_barrier(void *ctx, struct segmap_barrier *barrier, enum segmap_status status);
void segmap_effect_epoch(void *ctx, uint64_t epoch);

/* ---- answers that come later ---- */

/* Answer a request with a DONE-shaped body; then the request is freed. `detail` may be "". */
void segmap_answer(struct segmap_frame *request, enum segmap_status status, const char *detail);
/* Answer BIND_SLOT. */
void segmap_answer_attached(struct segmap_frame *request, uint64_t segment_count, uint32_t block_size,
			    bool volatile_cache);

/* ---- vbdev_segmap_bind.c: containers, each request is answered by them ---- */

void segmap_bind_slot(struct segmap_frame *request, const struct segmap_wire_bind_slot *body, const char *bdev_name);
void segmap_unbind_slot(struct segmap_frame *request, uint32_t slot);

/* ---- vbdev_segmap_jobs.c: copies and zeroes ---- */

void segmap_copy_segments(struct segmap_frame *request, const struct segmap_wire_segment_copy *copies, uint32_t count);
void segmap_zero_segments(struct segmap_frame *request, const struct segmap_wire_segment_run *runs, uint32_t count);

static inline const struct segmap_wire_header *
segmap_frame_header(const struct segmap_frame *frame)
{
	return (const struct segmap_wire_header *)frame->data;
}

static inline struct segmap_stamp
segmap_frame_stamp(const struct segmap_frame *frame)
{
	const struct segmap_wire_header *header = segmap_frame_header(frame);

	return (struct segmap_stamp) { header->term, header->incarnation, header->epoch, header->sequence };
}

#endif
