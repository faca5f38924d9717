/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bdev module: its start and end, its disks, and what the core wants done that is not about one part.
 */
#include "vbdev_segmap.h"

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/string.h"

#include "vbdev_segmap_socket.h"

#define NS_PER_S UINT64_C(1000000000)
#define TICK_US 1000
/* How far the channels' clock may be behind (one turn of a thread's loop) and wrong (since the lease was granted). */
#define CLOCK_MARGIN_NS UINT64_C(20000000)
/* Several segments at a time, so that the bdev layer has parts of a long discard under way side by side. */
#define DISCARD_SEGMENTS 4u
#define TAG_SHIFT 40
/* Entries from which on a table is too large for the processor's cache, and looking ahead pays. */
#define PREFETCH_SEGMENTS 65536u

struct segmap_target g_segmap;

uint64_t
segmap_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* ---- effects ---- */

static void
turn_channel(struct spdk_io_channel_iter *i)
{
	struct segmap_disk_channel *channel = spdk_io_channel_get_ctx(spdk_io_channel_iter_get_channel(i));

	segmap_channel_turn(&channel->core, &channel->disk->engine.generations);
	spdk_for_each_channel_continue(i, 0);
}

static void
turned(struct spdk_io_channel_iter *i, int status)
{
	struct segmap_disk *disk = spdk_io_channel_iter_get_ctx(i);

	(void)status;
	segmap_engine_drained(&disk->engine);
}

static bool
effect_turn(void *ctx, struct segmap_engine *engine)
{
	struct segmap_disk *disk = SPDK_CONTAINEROF(engine, struct segmap_disk, engine);

	(void)ctx;
	if (disk->gone) {
		return true;
	}
	spdk_for_each_channel(disk, turn_channel, disk, turned);
	return false;
}

static uint64_t
effect_ticks_at(void *ctx, uint64_t deadline_ns)
{
	uint64_t now_ns = segmap_now_ns(), ticks = spdk_get_ticks(), hz = spdk_get_ticks_hz(), left_ns;

	(void)ctx;
	if (deadline_ns <= now_ns + CLOCK_MARGIN_NS) {
		return 1;
	}
	left_ns = deadline_ns - now_ns - CLOCK_MARGIN_NS;
	return ticks + left_ns / NS_PER_S * hz + left_ns % NS_PER_S * hz / NS_PER_S;
}

static const struct segmap_effects effects = {
	.forward = segmap_effect_forward,
	.return_zeroes = segmap_effect_zeroes,
	.complete = segmap_effect_complete,
	.send_fault = segmap_effect_fault,
	.barrier_reached = segmap_effect_barrier,
	.epoch_began = segmap_effect_epoch,
	.turn = effect_turn,
	.ticks_at = effect_ticks_at,
};

/* ---- the module ---- */

/* Nothing stays parked at a disk that goes: whoever has it open waits for its I/O. */
static void
drop_parked(void)
{
	struct segmap_disk *disk;

	TAILQ_FOREACH(disk, &g_segmap.disks, link) {
		if ((disk->removing || g_segmap.stopping) && disk->engine.parked > 0) {
			segmap_engine_reset(&disk->engine, NULL);
		}
	}
}

static int
tick(void *ctx)
{
	(void)ctx;
	segmap_inbox_poll(&g_segmap.inbox);
	segmap_plane_tick(&g_segmap.plane, segmap_now_ns());
	drop_parked();
	return SPDK_POLLER_IDLE;
}

void
segmap_stop(void)
{
	g_segmap.stopping = true;
	drop_parked();
	segmap_settle_all();
}

static int
module_init(void)
{
	struct spdk_uuid instance;

	spdk_uuid_generate(&instance);
	segmap_plane_init(&g_segmap.plane, instance.u.raw, NULL, &effects, &g_segmap);
	TAILQ_INIT(&g_segmap.disks);
	segmap_inbox_init(&g_segmap.inbox);
	g_segmap.us_per_tick = (UINT64_C(1000000) << 32) / spdk_get_ticks_hz();
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		TAILQ_INIT(&g_segmap.containers[slot].unsettled);
		TAILQ_INIT(&g_segmap.containers[slot].stranded);
	}
	spdk_io_device_register(&g_segmap, segmap_thread_create, segmap_thread_destroy, sizeof(struct segmap_thread),
				"segmap");
	g_segmap.owner_channel = spdk_get_io_channel(&g_segmap);
	g_segmap.ticker = spdk_poller_register(tick, NULL, TICK_US);
	if (g_segmap.owner_channel == NULL || g_segmap.ticker == NULL) {
		return -ENOMEM;
	}
	return segmap_link_start();
}

/* The front ends are gone; the disks will be unregistered next. Their containers are given up first. */
static void
module_fini_start(void)
{
	segmap_stop();
	segmap_link_stop();
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		segmap_container_lose(&g_segmap.containers[slot]);
		free(g_segmap.containers[slot].origin);
		g_segmap.containers[slot].origin = NULL;
	}
	spdk_bdev_module_fini_start_done();
}

static void
module_gone(void *io_device)
{
	(void)io_device;
	spdk_bdev_module_fini_done();
}

static void
module_fini(void)
{
	spdk_poller_unregister(&g_segmap.ticker);
	if (g_segmap.owner_channel != NULL) {
		spdk_put_io_channel(g_segmap.owner_channel);
	}
	spdk_io_device_unregister(&g_segmap, module_gone);
}

static int
context_size(void)
{
	return sizeof(struct segmap_io);
}

struct spdk_bdev_module g_segmap_module = {
	.name = "segmap",
	.module_init = module_init,
	.fini_start = module_fini_start,
	.module_fini = module_fini,
	.async_fini = true,
	.async_fini_start = true,
	.get_ctx_size = context_size,
};

SPDK_BDEV_MODULE_REGISTER(segmap, &g_segmap_module)

/* ---- a disk's channels ---- */

static int
channel_create(void *io_device, void *ctx)
{
	static _Atomic(uint64_t) channels;
	struct segmap_disk_channel *channel = ctx;
	struct segmap_disk *disk = io_device;

	segmap_channel_init(&channel->core, &disk->engine);
	channel->disk = disk;
	channel->thread = spdk_get_thread();
	channel->io_tag = atomic_fetch_add(&channels, 1) << TAG_SHIFT;
	TAILQ_INIT(&channel->ended);
	channel->thread_channel = spdk_get_io_channel(&g_segmap);
	if (channel->thread_channel == NULL) {
		return -ENOMEM;
	}
	channel->paths = spdk_io_channel_get_ctx(channel->thread_channel);
	return 0;
}

static void
add_sums(struct segmap_sums *sums, const struct segmap_counters *parts,
	 const uint64_t latency[2][SEGMAP_LATENCY_BUCKETS])
{
	sums->parts.forwarded += parts->forwarded;
	sums->parts.zero_reads += parts->zero_reads;
	sums->parts.faults += parts->faults;
	sums->parts.failed += parts->failed;
	sums->parts.dropped += parts->dropped;
	for (uint32_t i = 0; i < SEGMAP_LATENCY_BUCKETS; i++) {
		sums->latency[0][i] += latency[0][i];
		sums->latency[1][i] += latency[1][i];
	}
}

/* Counters of a channel that is gone, on their way to the owner. */
struct last_counters {
	struct segmap_message message;
	struct segmap_disk *disk;
	struct segmap_sums sums;
};

static void
keep_counters(void *ctx)
{
	struct last_counters *last = ctx;

	add_sums(&last->disk->past, &last->sums.parts, last->sums.latency);
	free(last);
}

static void
channel_destroy(void *io_device, void *ctx)
{
	struct segmap_disk_channel *channel = ctx;
	struct last_counters *last = calloc(1, sizeof(*last));

	(void)io_device;
	if (last != NULL) {
		last->disk = channel->disk;
		add_sums(&last->sums, &channel->core.counters, channel->latency);
		segmap_tell_owner(&last->message, keep_counters, last);
	}
	spdk_put_io_channel(channel->thread_channel);
}

/* ---- a disk's functions ---- */

static void
channels_gone(void *io_device)
{
	struct segmap_disk *disk = io_device;

	/* What its channels have had to say last. */
	segmap_inbox_empty(&g_segmap.inbox);
	disk->gone = true;
	segmap_plane_drop_table(&g_segmap.plane, &disk->engine);
	TAILQ_REMOVE(&g_segmap.disks, disk, link);
	spdk_bdev_destruct_done(&disk->bdev, 0);
	free(disk->bdev.name);
	free(disk);
}

static void
leave(void *ctx)
{
	struct segmap_disk *disk = ctx;

	disk->leaving = true;
	segmap_disk_settled(disk);
}

/* While an I/O may still be done by a container the disk is listed: it has not gone. */
void
segmap_disk_settled(struct segmap_disk *disk)
{
	if (disk->leaving && (atomic_load(&disk->unsettled) == 0 || g_segmap.stopping)) {
		disk->leaving = false;
		spdk_io_device_unregister(disk, channels_gone);
	}
}

static int
disk_destruct(void *ctx)
{
	spdk_thread_exec_msg(g_segmap.inbox.thread, leave, ctx);
	return 1;
}

static bool
io_type_supported(void *ctx, enum spdk_bdev_io_type type)
{
	const struct segmap_disk *disk = ctx;

	switch (type) {
	case SPDK_BDEV_IO_TYPE_READ:
	case SPDK_BDEV_IO_TYPE_FLUSH:
	case SPDK_BDEV_IO_TYPE_RESET:
	case SPDK_BDEV_IO_TYPE_ABORT:
		return true;
	case SPDK_BDEV_IO_TYPE_WRITE:
	case SPDK_BDEV_IO_TYPE_UNMAP:
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		return !disk->engine.geometry.read_only;
	default:
		return false;
	}
}

static struct spdk_io_channel *
get_io_channel(void *ctx)
{
	return spdk_get_io_channel(ctx);
}

static int
dump_info_json(void *ctx, struct spdk_json_write_ctx *w)
{
	spdk_json_write_named_object_begin(w, "segmap");
	segmap_disk_write_info(ctx, w);
	spdk_json_write_object_end(w);
	return 0;
}

/* Identity only: what the table holds is the controller's. */
static void
write_config_json(struct spdk_bdev *bdev, struct spdk_json_write_ctx *w)
{
	const struct segmap_disk *disk = bdev->ctxt;
	const struct segmap_geometry *geometry = &disk->engine.geometry;

	spdk_json_write_object_begin(w);
	spdk_json_write_named_string(w, "method", "bdev_segmap_create");
	spdk_json_write_named_object_begin(w, "params");
	spdk_json_write_named_string(w, "name", bdev->name);
	spdk_json_write_named_uint64(w, "table", disk->engine.table_id);
	spdk_json_write_named_uint64(w, "segment_count", geometry->segment_count);
	spdk_json_write_named_uint32(w, "segment_size", geometry->segment_size);
	spdk_json_write_named_uint32(w, "block_size", geometry->block_size);
	spdk_json_write_named_uuid(w, "uuid", &bdev->uuid);
	spdk_json_write_named_bool(w, "read_only", geometry->read_only);
	spdk_json_write_named_bool(w, "reclaim", geometry->reclaim);
	spdk_json_write_object_end(w);
	spdk_json_write_object_end(w);
}

static const struct spdk_bdev_fn_table disk_functions = {
	.destruct = disk_destruct,
	.submit_request = segmap_submit_request,
	.io_type_supported = io_type_supported,
	.get_io_channel = get_io_channel,
	.dump_info_json = dump_info_json,
	.write_config_json = write_config_json,
};

/* ---- life of a disk ---- */

bool
segmap_slots_fit(const struct segmap_geometry *geometry, const struct segmap_slots *slots, char *detail)
{
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		const struct segmap_container *container = &g_segmap.containers[slot];
		struct segmap_base *base;

		if (!segmap_slots_have(slots, slot) || !container->bound) {
			continue;
		}
		base = atomic_load(&container->base);
		if (container->label.segment_size != geometry->segment_size) {
			snprintf(detail, SEGMAP_DETAIL_BYTES, "slot %u has segments of %" PRIu64 " bytes", slot,
				 container->label.segment_size);
			return false;
		}
		if (base != NULL && geometry->block_size % base->block_size != 0) {
			snprintf(detail, SEGMAP_DETAIL_BYTES, "slot %u has blocks of %u bytes", slot, base->block_size);
			return false;
		}
	}
	return true;
}

static int
create_errno(enum segmap_status status, char *detail)
{
	switch (status) {
	case SEGMAP_STATUS_OK:
		return 0;
	case SEGMAP_STATUS_EXISTS:
		return -EEXIST;
	case SEGMAP_STATUS_LIMIT:
		return -ENOSPC;
	case SEGMAP_STATUS_NO_CONTAINER:
		snprintf(detail, SEGMAP_DETAIL_BYTES, "a slot is not bound to a container");
		return -ENOENT;
	case SEGMAP_STATUS_NO_SPACE:
		return -ENOMEM;
	default:
		return -EINVAL;
	}
}

static void
describe_bdev(struct segmap_disk *disk, const struct segmap_disk_opts *opts)
{
	struct spdk_bdev *bdev = &disk->bdev;
	uint32_t per_segment = disk->engine.blocks_per_segment;

	disk->block_shift = spdk_u32log2(opts->geometry.block_size);
	disk->segment_shift = spdk_u32_is_pow2(per_segment) ? spdk_u32log2(per_segment) : SEGMAP_NO_SHIFT;
	disk->prefetches = opts->geometry.segment_count > PREFETCH_SEGMENTS;
	bdev->ctxt = disk;
	bdev->product_name = SEGMAP_PRODUCT_NAME;
	bdev->write_cache = 1;
	bdev->blocklen = opts->geometry.block_size;
	bdev->blockcnt = opts->geometry.segment_count * per_segment;
	bdev->optimal_io_boundary = per_segment;
	bdev->split_on_optimal_io_boundary = true;
	bdev->max_unmap = per_segment * DISCARD_SEGMENTS;
	bdev->max_unmap_segments = 1;
	bdev->max_write_zeroes = per_segment * DISCARD_SEGMENTS;
	bdev->uuid = opts->uuid;
	bdev->module = &g_segmap_module;
	bdev->fn_table = &disk_functions;
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		disk->losses_told[slot] = g_segmap.containers[slot].losses;
	}
}

int
segmap_disk_create(const struct segmap_disk_opts *opts, char *detail)
{
	struct segmap_disk *disk;
	enum segmap_status status;
	int rc;

	detail[0] = '\0';
	if (spdk_bdev_get_by_name(opts->name) != NULL || segmap_disk_find(opts->name) != NULL) {
		return -EEXIST;
	}
	if (segmap_geometry_check(&opts->geometry) != 0 || !segmap_slots_fit(&opts->geometry, &opts->slots, detail)) {
		return -EINVAL;
	}
	disk = calloc(1, sizeof(*disk));
	if (disk == NULL) {
		return -ENOMEM;
	}
	disk->bdev.name = strdup(opts->name);
	if (disk->bdev.name == NULL) {
		rc = -ENOMEM;
		goto free_disk;
	}
	status = segmap_plane_create_table(&g_segmap.plane, &disk->engine, opts->table, &opts->geometry, &opts->slots);
	rc = create_errno(status, detail);
	if (rc != 0) {
		goto free_disk;
	}
	TAILQ_INIT(&disk->flushes);
	describe_bdev(disk, opts);
	spdk_io_device_register(disk, channel_create, channel_destroy, sizeof(struct segmap_disk_channel), opts->name);
	rc = spdk_bdev_register(&disk->bdev);
	if (rc != 0) {
		goto unregister;
	}
	TAILQ_INSERT_TAIL(&g_segmap.disks, disk, link);
	return 0;

unregister:
	/* Nobody has had a channel: it goes at once. */
	spdk_io_device_unregister(disk, NULL);
	segmap_plane_drop_table(&g_segmap.plane, &disk->engine);
free_disk:
	free(disk->bdev.name);
	free(disk);
	return rc;
}

struct segmap_disk *
segmap_disk_find(const char *name)
{
	struct segmap_disk *disk;

	TAILQ_FOREACH(disk, &g_segmap.disks, link) {
		if (strcmp(disk->bdev.name, name) == 0) {
			return disk;
		}
	}
	return NULL;
}

/* First the table goes, and what is parked: whoever has the disk open waits for its I/O before he closes it. */
void
segmap_disk_delete(struct segmap_disk *disk, spdk_bdev_unregister_cb done, void *ctx)
{
	if (!disk->removing) {
		disk->removing = true;
		segmap_plane_remove_table(&g_segmap.plane, disk->engine.table_id, segmap_now_ns());
		segmap_engine_reset(&disk->engine, NULL);
	}
	spdk_bdev_unregister(&disk->bdev, done, ctx);
}

int
segmap_disk_resize(struct segmap_disk *disk, uint64_t segment_count)
{
	struct segmap_geometry geometry = disk->engine.geometry;
	uint64_t before = geometry.segment_count;
	int rc;

	if (disk->removing) {
		return -EBUSY;
	}
	geometry.segment_count = segment_count;
	if (segmap_geometry_check(&geometry) != 0) {
		return -EINVAL;
	}
	if (segment_count < before) {
		rc = spdk_bdev_notify_blockcnt_change(&disk->bdev, segment_count * disk->engine.blocks_per_segment);
		return rc != 0 ? rc : segmap_engine_resize(&disk->engine, segment_count, segmap_now_ns());
	}
	rc = segmap_engine_resize(&disk->engine, segment_count, segmap_now_ns());
	if (rc != 0) {
		return rc;
	}
	disk->prefetches = segment_count > PREFETCH_SEGMENTS;
	return spdk_bdev_notify_blockcnt_change(&disk->bdev, segment_count * disk->engine.blocks_per_segment);
}

/* ---- counters ---- */

struct count {
	struct segmap_sums sums;
	void (*done)(void *ctx, const struct segmap_sums *sums);
	void *ctx;
};

static void
count_channel(struct spdk_io_channel_iter *i)
{
	struct count *count = spdk_io_channel_iter_get_ctx(i);
	struct segmap_disk_channel *channel = spdk_io_channel_get_ctx(spdk_io_channel_iter_get_channel(i));

	add_sums(&count->sums, &channel->core.counters, channel->latency);
	spdk_for_each_channel_continue(i, 0);
}

static void
counted(struct spdk_io_channel_iter *i, int status)
{
	struct count *count = spdk_io_channel_iter_get_ctx(i);

	(void)status;
	count->done(count->ctx, &count->sums);
	free(count);
}

void
segmap_disk_count(struct segmap_disk *disk, void (*done)(void *ctx, const struct segmap_sums *sums), void *ctx)
{
	static const uint64_t none[2][SEGMAP_LATENCY_BUCKETS];
	struct count *count = calloc(1, sizeof(*count));

	if (count == NULL) {
		done(ctx, &disk->past);
		return;
	}
	count->done = done;
	count->ctx = ctx;
	count->sums = disk->past;
	add_sums(&count->sums, &disk->engine.own.counters, none);
	spdk_for_each_channel(disk, count_channel, count, counted);
}
