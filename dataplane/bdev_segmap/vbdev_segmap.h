/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The SPDK glue of the C core: virtual disks as bdevs, bdevs as containers, the data plane's socket.
 *
 * Threads. The owner is SPDK's app thread: it alone calls what the core says is the owner's, runs JSON-RPC, opens and
 * closes bdevs, and speaks with the socket's thread through messages. Each SPDK thread with I/O has a channel for each
 * disk, and one `struct segmap_thread` with its paths to the containers. Nothing here takes a lock but the socket's queue.
 * However much waits to be said from one thread to another, it is one message of SPDK's (struct segmap_inbox).
 */
#ifndef VBDEV_SEGMAP_H
#define VBDEV_SEGMAP_H

#include "spdk/stdinc.h"

#include "spdk/bdev_module.h"
#include "spdk/json.h"
#include "spdk/thread.h"
#include "spdk/util.h"

#include "core/label.h"
#include "core/plane.h"
#include "spdk_versions.h"
#include "vbdev_segmap_inbox.h"

#define SEGMAP_PRODUCT_NAME "Segmap disk"
#define SEGMAP_DETAIL_BYTES 128
#define SEGMAP_LATENCY_BUCKETS 24u
#define SEGMAP_RING 8u
#define SEGMAP_NO_SHIFT UINT32_MAX

struct segmap_controller;

/* An open bdev behind a container. It is closed when the last path to it is gone. */
struct segmap_base {
	struct spdk_bdev_desc *desc;
	struct spdk_bdev *bdev;
	uint32_t slot;
	uint64_t place; /* the container's, since it is this base */
	uint32_t block_size;
	uint32_t block_shift;
	bool unmaps;
	bool flushes;
	bool removed; /* the bdev wants to go */
	bool answers; /* its I/O has ended when it says so, even with a failure */
	_Atomic(uint32_t) refs; /* the container's, and one for each path */
	struct segmap_message gone;
	/* Of an NVMe bdev: what it is connected with, which namespace of it, and who it was when it was bound. */
	struct segmap_controller *controller;
	uint32_t nsid;
	bool labelled;
	struct segmap_label label;
	TAILQ_ENTRY(segmap_base) link;
};

struct segmap_unsettled;
TAILQ_HEAD(segmap_unsettled_list, segmap_unsettled);

/* A slot. `segment_count` is the label's: it counts segment 0, the label's own. */
struct segmap_container {
	struct segmap_label label;
	_Atomic(uint64_t) segment_count;
	_Atomic(struct segmap_base *) base; /* NULL: not bound, or its bdev is gone */
	uint64_t losses; /* how often unflushed writes may have been lost; the owner's */
	_Atomic(uint64_t) settles; /* how often all from before had ended, whatever had become of it */
	_Atomic(uint64_t) life; /* counts the containers that this slot has been */
	struct segmap_unsettled_list unsettled;
	struct segmap_unsettled_list stranded; /* sent to where it was before: only the end of all of those ends it */
	uint64_t places; /* how often it has come to be elsewhere; the owner's */
	char *origin; /* where its bdev led, and as whom; NULL: unknown */
	bool bound;
	bool binding;
};

/* One thread's way to one base. */
struct segmap_path {
	struct spdk_bdev_desc *desc; /* the base's */
	struct spdk_io_channel *channel;
	uint32_t block_shift; /* the base's */
	uint32_t inflight;
	bool unmaps; /* the base's */
	bool closing;
	struct segmap_base *base;
};

/* What a thread has, whichever disks it serves: the channel of the io_device `&g_segmap`. */
struct segmap_thread {
	struct segmap_inbox inbox;
	struct spdk_poller *poller;
	struct segmap_path *paths[SEGMAP_SLOTS];
};

/* What channels have counted. Latencies of container I/O: reads, and all else; see segmap_latency_bucket. */
struct segmap_sums {
	struct segmap_counters parts;
	uint64_t latency[2][SEGMAP_LATENCY_BUCKETS];
};

struct segmap_flush;

struct segmap_disk {
	struct spdk_bdev bdev;
	struct segmap_engine engine;
	uint32_t block_shift;
	uint32_t segment_shift; /* of blocks; SEGMAP_NO_SHIFT if a segment's are no power of two */
	_Atomic(bool) prefetches; /* its table does not fit into the processor's cache */
	bool removing;
	bool leaving; /* the bdev layer has done with it: it goes when all has settled */
	bool gone; /* its channels are; nothing is left to be turned */
	_Atomic(uint32_t) unsettled; /* parts */
	_Atomic(uint32_t) drains; /* that the owner has not been told of yet */
	struct segmap_message drained;
	_Atomic(uint64_t) touched[SEGMAP_SLOTS / 64]; /* slots with writes since the last flush */
	uint64_t losses_told[SEGMAP_SLOTS]; /* of the containers, as flushes have told them; the owner's */
	TAILQ_HEAD(, segmap_flush) flushes;
	struct segmap_sums past; /* of channels that are gone */
	TAILQ_ENTRY(segmap_disk) link;
};

TAILQ_HEAD(segmap_io_list, segmap_io);

/* One thread's channel of one disk. */
struct segmap_disk_channel {
	struct segmap_channel core; /* first: it is found by its address */
	struct segmap_disk *disk;
	struct spdk_thread *thread;
	struct spdk_io_channel *thread_channel;
	struct segmap_thread *paths;
	uint64_t io_tag; /* the last one given; tags are unique at the target */
	struct segmap_io_list ended; /* wait for a turn of the thread's loop: nothing ends inside its own submission */
	struct segmap_message ended_message;
	/* I/O whose entry is on its way into the processor's cache: it has not begun. The oldest is at `ring_at`. */
	struct segmap_io *ring[SEGMAP_RING];
	uint32_t ring_at;
	uint32_t ring_count;
	struct segmap_message ring_message;
	uint64_t latency[2][SEGMAP_LATENCY_BUCKETS];
};

/* One host I/O; the driver context of a bdev_io. It has one part at a time. */
struct segmap_io {
	struct segmap_part part; /* first */
	struct segmap_disk_channel *channel;
	struct segmap_path *path;
	uint64_t at; /* blocks: where the next part begins */
	uint64_t end;
	enum segmap_status status;
	bool drained;
	bool settled;
	struct segmap_message message;
	struct spdk_bdev_io_wait_entry wait;
	TAILQ_ENTRY(segmap_io) link;
};

struct segmap_target {
	struct segmap_plane plane;
	struct segmap_inbox inbox; /* the owner's */
	struct spdk_poller *ticker;
	uint64_t us_per_tick; /* as a fraction of 2^32 */
	bool stopping; /* nothing stays parked any more */
	struct spdk_io_channel *owner_channel;
	struct segmap_container containers[SEGMAP_SLOTS];
	TAILQ_HEAD(, segmap_disk) disks;
};

extern struct segmap_target g_segmap;
extern struct spdk_bdev_module g_segmap_module;

/* Bucket 0: less than 1 us; each other one: less than twice as long as the one before; the last one: the rest. */
static inline uint32_t
segmap_latency_bucket(uint64_t ticks)
{
	uint64_t us = ticks * g_segmap.us_per_tick >> 32;

	return us == 0 ? 0 : spdk_min(64u - (uint32_t)__builtin_clzll(us), SEGMAP_LATENCY_BUCKETS - 1);
}

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t segmap_now_ns(void);

/* Have the owner call `fn`. `message` is in use until then. */
static inline void
segmap_tell_owner(struct segmap_message *message, spdk_msg_fn fn, void *ctx)
{
	segmap_inbox_put(&g_segmap.inbox, message, fn, ctx);
}

/* ---- vbdev_segmap.c: disks, on the owner's thread ---- */

/* The target is about to end: what is parked is dropped, and whatever would be parked from now on. */
void segmap_stop(void);

struct segmap_disk_opts {
	const char *name;
	uint64_t table;
	struct segmap_geometry geometry;
	struct segmap_slots slots;
	struct spdk_uuid uuid;
};

/* 0 or -errno; `detail` (of SEGMAP_DETAIL_BYTES) says more, or is empty. */
int segmap_disk_create(const struct segmap_disk_opts *opts, char *detail);
struct segmap_disk *segmap_disk_find(const char *name);
void segmap_disk_delete(struct segmap_disk *disk, spdk_bdev_unregister_cb done, void *ctx);
/* The members of what bdev_segmap_get says, without name and uuid. */
void segmap_disk_write_info(struct segmap_disk *disk, struct spdk_json_write_ctx *w);
int segmap_disk_resize(struct segmap_disk *disk, uint64_t segment_count);
/* Calls `done` with the sum of all channels' counters. */
void segmap_disk_count(struct segmap_disk *disk, void (*done)(void *ctx, const struct segmap_sums *sums), void *ctx);
/* All that was unsettled may have settled: let the disk go if it is to. */
void segmap_disk_settled(struct segmap_disk *disk);
/* True if the table's segments and blocks can lie in these containers; else `detail` says in which not. */
bool segmap_slots_fit(const struct segmap_geometry *geometry, const struct segmap_slots *slots, char *detail);

/* ---- vbdev_segmap_io.c: I/O, on the threads of the channels ---- */

void segmap_submit_request(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io);
/* The core's effects that are about parts. */
void segmap_effect_forward(void *ctx, struct segmap_part *part);
void segmap_effect_zeroes(void *ctx, struct segmap_part *part);
void segmap_effect_complete(void *ctx, struct segmap_part *part);

/* ---- vbdev_segmap_paths.c: from a thread to a container ---- */

int segmap_thread_create(void *io_device, void *ctx);
void segmap_thread_destroy(void *io_device, void *ctx);
/* The path to a slot's base, NULL if there is none. Each I/O holds it: segmap_path_hold, segmap_path_release. */
struct segmap_path *segmap_path_find(struct segmap_thread *thread, uint32_t slot);
void segmap_path_release(struct segmap_path *path);
/* The owner's own paths. */
struct segmap_thread *segmap_owner_paths(void);
/* Open a bdev as a base, claimed; 0 or -errno. The owner's, like all below. */
int segmap_base_open(const char *name, uint32_t slot, struct segmap_base **base);
/* A base that no container holds yet, or that one holds no longer. */
void segmap_base_close(struct segmap_base *base);
/* The container has lost its base, or gives it up. */
void segmap_container_lose(struct segmap_container *container);
/* One reference to a base more, or one fewer. */
void segmap_base_ref(struct segmap_base *base);
void segmap_base_unref(struct segmap_base *base);

static inline void
segmap_path_hold(struct segmap_path *path)
{
	path->inflight++;
}

/* ---- vbdev_segmap_nvme.c: connections with containers ---- */

/* The base has been opened, or is about to be closed. */
int segmap_base_connect(struct segmap_base *base);
void segmap_base_disconnect(struct segmap_base *base);
/* How often the base's connection has been lost, and whether it is up. */
uint64_t segmap_base_disconnects(const struct segmap_base *base);
/* The container has become this base: I/O after a lost connection waits until its label has been read again. */
void segmap_base_label(struct segmap_base *base, const struct segmap_label *label);
/* Where the base leads and as whom, to be freed; NULL if unknown, or out of memory. */
char *segmap_base_origin(const struct segmap_base *base);

/* ---- vbdev_segmap_unsettled.c: I/O that has failed and may still be done ---- */

/* True if what failed may still be done by the container. */
bool segmap_may_still_land(const struct segmap_base *base, const struct spdk_bdev_io *base_io);
/* The part of this I/O may: barriers wait for it, whatever becomes of the I/O. On the channel's thread. */
void segmap_unsettle(struct segmap_io *io);
/* Nothing from before is being done in the container any more; or where it was before that, either. The owner's. */
void segmap_container_settle(struct segmap_container *container, bool everywhere);
/* The container is elsewhere from now on: what is there says nothing of what was sent to where it was. The owner's. */
void segmap_container_strand(struct segmap_container *container);
/* The process ends: nobody asks any more. The owner's. */
void segmap_settle_all(void);

/* ---- vbdev_segmap_flush.c ---- */

/* The table lists this slot from now on: what was lost there before is none of the disk's business. */
void segmap_watch_slot(struct segmap_disk *disk, uint32_t slot);

/* Flush what the table lists and what the disk has written to; then complete the part. On the owner's thread. */
void segmap_flush(struct segmap_io *io);

#endif
