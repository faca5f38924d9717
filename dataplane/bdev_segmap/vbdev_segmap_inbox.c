/* SPDX-License-Identifier: BSD-3-Clause */
#include "vbdev_segmap_inbox.h"

void
segmap_inbox_init(struct segmap_inbox *inbox)
{
	inbox->thread = spdk_get_thread();
	atomic_store(&inbox->newest, NULL);
	atomic_store(&inbox->uncalled, false);
}

static void
called(void *ctx)
{
	segmap_inbox_empty(ctx);
}

void
segmap_inbox_put(struct segmap_inbox *inbox, struct segmap_message *message, spdk_msg_fn fn, void *ctx)
{
	struct segmap_message *before = atomic_load_explicit(&inbox->newest, memory_order_relaxed);

	message->fn = fn;
	message->ctx = ctx;
	do {
		message->next = before;
	} while (!atomic_compare_exchange_weak_explicit(&inbox->newest, &before, message, memory_order_acq_rel,
							memory_order_relaxed));
	if (before == NULL && spdk_thread_send_msg(inbox->thread, called, inbox) != 0) {
		atomic_store(&inbox->uncalled, true);
	}
}

void
segmap_inbox_empty(struct segmap_inbox *inbox)
{
	struct segmap_message *newest = atomic_exchange_explicit(&inbox->newest, NULL, memory_order_acq_rel);
	struct segmap_message *oldest = NULL, *message;

	while ((message = newest) != NULL) {
		newest = message->next;
		message->next = oldest;
		oldest = message;
	}
	/* The inbox may go with what a message is about, and each message with itself. */
	while ((message = oldest) != NULL) {
		oldest = message->next;
		message->fn(message->ctx);
	}
}

void
segmap_inbox_poll(struct segmap_inbox *inbox)
{
	if (atomic_load_explicit(&inbox->uncalled, memory_order_relaxed) && atomic_exchange(&inbox->uncalled, false)) {
		segmap_inbox_empty(inbox);
	}
}
