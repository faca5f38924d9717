/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Messages between threads that cannot get lost and need no memory.
 *
 * A message lies in what it is about, which can say one thing at a time. It goes into the inbox of the thread that it is
 * for, without a lock. The first one in an empty inbox has SPDK call for that thread: there is never more than one of
 * SPDK's own messages for an inbox, so that its pool is not what limits I/O. If SPDK has none left, the thread finds out
 * by itself (segmap_inbox_poll). Messages of one thread to another are received in the order in which they were sent.
 */
#ifndef VBDEV_SEGMAP_INBOX_H
#define VBDEV_SEGMAP_INBOX_H

#include <stdatomic.h>
#include <stdbool.h>

#include "spdk/thread.h"

struct segmap_message {
	struct segmap_message *next;
	spdk_msg_fn fn;
	void *ctx;
};

struct segmap_inbox {
	struct spdk_thread *thread;
	_Atomic(struct segmap_message *) newest;
	_Atomic(bool) uncalled; /* there is something, and no message of SPDK's says so */
};

/* The inbox of the present thread. */
void segmap_inbox_init(struct segmap_inbox *inbox);

/* Have `fn` called on the inbox's thread. From any thread. */
void segmap_inbox_put(struct segmap_inbox *inbox, struct segmap_message *message, spdk_msg_fn fn, void *ctx);

/* Receive all there is. On the inbox's thread. */
void segmap_inbox_empty(struct segmap_inbox *inbox);

/* Receive what SPDK could not call for: now and then, on the inbox's thread. */
void segmap_inbox_poll(struct segmap_inbox *inbox);

#endif
