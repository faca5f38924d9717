/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Host I/O: cut at segment boundaries, one part after the other, and done where the table says [0024].
 *
 * What the entry lets through is done on the thread it came in on, without a lock, an allocation or a message. All else
 * goes to the owner and comes back. The bdev layer cuts reads and writes at segments already; unmaps and zeroes of
 * several segments are cut here. Nothing ends inside its own submission.
 */
#include "vbdev_segmap.h"

#include "spdk/log.h"
#include "spdk/nvme_spec.h"
#include "spdk/util.h"

/* NVMe base specification, generic command status; SPDK has no name for it. */
#define NAMESPACE_IS_WRITE_PROTECTED 0x20

static void submit_part(struct segmap_io *io);

static struct spdk_bdev_io *
bdev_io_of(struct segmap_io *io)
{
	return spdk_bdev_io_from_ctx(io);
}

static uint64_t
now_ticks(const struct segmap_disk_channel *channel)
{
	return spdk_thread_get_last_tsc(channel->thread);
}

/* ---- ends ---- */

/* NVMe's words for what went wrong; a path that is not ready now makes hosts try another. */
static void
complete_to_host(struct segmap_io *io)
{
	struct spdk_bdev_io *bdev_io = bdev_io_of(io);

	switch (io->status) {
	case SEGMAP_STATUS_OK:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_SUCCESS);
		return;
	case SEGMAP_STATUS_CANCELLED:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_ABORTED);
		return;
	case SEGMAP_STATUS_NO_SPACE:
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_CAPACITY_EXCEEDED);
		return;
	case SEGMAP_STATUS_WRITE_PROTECTED:
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, SPDK_NVME_SCT_GENERIC,
						  NAMESPACE_IS_WRITE_PROTECTED);
		return;
	case SEGMAP_STATUS_OUT_OF_RANGE:
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_LBA_OUT_OF_RANGE);
		return;
	case SEGMAP_STATUS_LEASE_EXPIRED:
	case SEGMAP_STATUS_TIMEOUT:
	case SEGMAP_STATUS_BUSY:
	case SEGMAP_STATUS_NO_CONTAINER:
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, SPDK_NVME_SCT_GENERIC, SPDK_NVME_SC_NAMESPACE_NOT_READY);
		return;
	default:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
}

static void
complete_ended(void *ctx)
{
	struct segmap_disk_channel *channel = ctx;
	struct segmap_io_list ended = TAILQ_HEAD_INITIALIZER(ended);
	struct segmap_io *io;

	TAILQ_CONCAT(&ended, &channel->ended, link);
	/* The channel may go with its last I/O: it is not touched any more. */
	while ((io = TAILQ_FIRST(&ended)) != NULL) {
		TAILQ_REMOVE(&ended, io, link);
		complete_to_host(io);
	}
}

/* End the I/O at the next turn of the thread's loop; many share one message. */
static void
end_later(struct segmap_io *io)
{
	struct segmap_disk_channel *channel = io->channel;
	bool first = TAILQ_EMPTY(&channel->ended);

	TAILQ_INSERT_TAIL(&channel->ended, io, link);
	if (first) {
		segmap_inbox_put(&channel->paths->inbox, &channel->ended_message, complete_ended, channel);
	}
}

/* The part has ended with io->part.status: go on with the next one, or end the I/O. */
static void
part_ended(struct segmap_io *io, bool inside_submission)
{
	io->status = io->part.status;
	if (io->status == SEGMAP_STATUS_OK && io->at < io->end) {
		submit_part(io);
	} else if (inside_submission) {
		end_later(io);
	} else {
		complete_to_host(io);
	}
}

static void
fill_zeroes(struct segmap_io *io)
{
	struct spdk_bdev_io *bdev_io = bdev_io_of(io);

	for (int i = 0; i < bdev_io->u.bdev.iovcnt; i++) {
		memset(bdev_io->u.bdev.iovs[i].iov_base, 0, bdev_io->u.bdev.iovs[i].iov_len);
	}
	io->part.status = SEGMAP_STATUS_OK;
}

/* ---- messages to the owner, and back ---- */

static void
ask_owner(struct segmap_io *io, spdk_msg_fn fn)
{
	segmap_tell_owner(&io->message, fn, io);
}

static void
tell_thread(struct segmap_io *io, spdk_msg_fn fn)
{
	segmap_inbox_put(&io->channel->paths->inbox, &io->message, fn, io);
}

static void
owner_submit(void *ctx)
{
	struct segmap_io *io = ctx;

	segmap_engine_submit(&io->channel->disk->engine, &io->part, segmap_now_ns());
}

static void
owner_complete(void *ctx)
{
	struct segmap_io *io = ctx;
	struct segmap_engine *engine = &io->channel->disk->engine;
	bool drained = io->drained;

	segmap_engine_complete(engine, &io->part, io->settled, segmap_now_ns());
	if (drained) {
		segmap_engine_drained(engine);
	}
}

static void
owner_drained(void *ctx)
{
	struct segmap_disk *disk = ctx;

	for (uint32_t drains = atomic_exchange(&disk->drains, 0); drains > 0; drains--) {
		segmap_engine_drained(&disk->engine);
	}
}

static void
owner_withdraw(void *ctx)
{
	struct segmap_io *io = ctx;
	struct segmap_engine *engine = &io->channel->disk->engine;

	segmap_engine_withdraw(engine, &io->part);
	segmap_engine_submit(engine, &io->part, segmap_now_ns());
}

static void
tell_drained(struct segmap_io *io)
{
	struct segmap_disk *disk = io->channel->disk;

	if (atomic_fetch_add(&disk->drains, 1) == 0) {
		segmap_tell_owner(&disk->drained, owner_drained, disk);
	}
}

/* The container I/O of the part has ended; or none could be begun, and this is still its submission. */
static void
container_done(struct segmap_io *io, enum segmap_status status, uint64_t now, bool inside_submission)
{
	struct segmap_disk_channel *channel = io->channel;
	bool drained;

	if (segmap_channel_complete(&channel->core, &io->part, status, io->settled, now, &drained) ==
	    SEGMAP_STEP_ASK_OWNER) {
		io->drained = drained;
		ask_owner(io, owner_complete);
		return;
	}
	if (spdk_unlikely(drained)) {
		tell_drained(io);
	}
	part_ended(io, inside_submission);
}

/* ---- container I/O ---- */

/* Remember that the slot has writes that only a flush makes safe. */
static void
touch(struct segmap_disk *disk, uint32_t slot)
{
	_Atomic(uint64_t) *word = &disk->touched[slot / 64];
	uint64_t bit = UINT64_C(1) << (slot % 64);

	if (spdk_unlikely((atomic_load_explicit(word, memory_order_relaxed) & bit) == 0)) {
		atomic_fetch_or(word, bit);
	}
}

/* To a turn of the thread's loop: this costs no look at the clock. */
static void
note_latency(struct segmap_io *io, uint64_t since_ticks, uint64_t now)
{
	struct segmap_disk_channel *channel = io->channel;
	uint64_t ticks = now > since_ticks ? now - since_ticks : 0;

	channel->latency[io->part.operation != SEGMAP_OPERATION_READ][segmap_latency_bucket(ticks)]++;
}

static void
base_io_done(struct spdk_bdev_io *base_io, bool success, void *ctx)
{
	struct segmap_io *io = ctx;
	uint64_t now = now_ticks(io->channel);

	if (spdk_likely(success)) {
		note_latency(io, spdk_bdev_io_get_submit_tsc(base_io), now);
		if (io->part.operation != SEGMAP_OPERATION_READ) {
			touch(io->channel->disk, segmap_slot_of(io->part.entry));
		}
	} else if (io->part.operation != SEGMAP_OPERATION_READ && segmap_may_still_land(io->path->base, base_io)) {
		segmap_unsettle(io);
	}
	spdk_bdev_free_io(base_io);
	segmap_path_release(io->path);
	container_done(io, success ? SEGMAP_STATUS_OK : SEGMAP_STATUS_IO_ERROR, now, false);
}

/* Out of memory below: the part has not begun after all, and is tried again from the start when there is some. */
static void
try_again(void *ctx)
{
	struct segmap_io *io = ctx;

	segmap_path_release(io->path);
	submit_part(io);
}

static void
try_again_owned(void *ctx)
{
	struct segmap_io *io = ctx;

	segmap_path_release(io->path);
	ask_owner(io, owner_withdraw);
}

static void
wait_for_memory(struct segmap_io *io)
{
	struct segmap_path *path = io->path;
	struct segmap_disk_channel *channel = io->channel;
	bool owned = io->part.counted != &channel->core;
	int rc;

	if (!owned) {
		if (segmap_channel_withdraw(&channel->core, &io->part)) {
			tell_drained(io);
		}
		io->at = io->part.segment * channel->disk->engine.blocks_per_segment + io->part.offset_blocks;
	}
	io->wait.bdev = path->base->bdev;
	io->wait.cb_fn = owned ? try_again_owned : try_again;
	io->wait.cb_arg = io;
	rc = spdk_bdev_queue_io_wait(path->base->bdev, path->channel, &io->wait);
	if (rc != 0) {
		/* There is memory again already. */
		tell_thread(io, io->wait.cb_fn);
	}
}

static int
submit_to_base(struct segmap_io *io, uint64_t offset, uint64_t count)
{
	struct segmap_path *path = io->path;
	struct spdk_bdev_desc *desc = path->desc;
	struct spdk_bdev_io *bdev_io = bdev_io_of(io);

	switch (io->part.operation) {
	case SEGMAP_OPERATION_READ:
		return spdk_bdev_readv_blocks(desc, path->channel, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt, offset,
					      count, base_io_done, io);
	case SEGMAP_OPERATION_WRITE:
		return spdk_bdev_writev_blocks(desc, path->channel, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt,
					       offset, count, base_io_done, io);
	case SEGMAP_OPERATION_UNMAP:
		return spdk_bdev_unmap_blocks(desc, path->channel, offset, count, base_io_done, io);
	case SEGMAP_OPERATION_WRITE_ZEROES:
		return spdk_bdev_write_zeroes_blocks(desc, path->channel, offset, count, base_io_done, io);
	default:
		return -ENOTSUP;
	}
}

/* The part has begun: do it on its container. */
static void
forward(struct segmap_io *io)
{
	const struct segmap_part *part = &io->part;
	struct segmap_disk *disk = io->channel->disk;
	uint32_t slot = segmap_slot_of(part->entry), shift;
	const struct segmap_container *container = &g_segmap.containers[slot];
	uint64_t physical = segmap_segment_of(part->entry), block;
	struct segmap_path *path = segmap_path_find(io->channel->paths, slot);
	int rc;

	if (spdk_unlikely(path == NULL || physical == 0 ||
			  physical >= atomic_load_explicit(&container->segment_count, memory_order_relaxed))) {
		container_done(io, SEGMAP_STATUS_IO_ERROR, now_ticks(io->channel), true);
		return;
	}
	if (part->operation == SEGMAP_OPERATION_UNMAP && !path->unmaps) {
		container_done(io, SEGMAP_STATUS_OK, now_ticks(io->channel), true);
		return;
	}
	if (part->operation != SEGMAP_OPERATION_READ) {
		touch(disk, slot);
	}
	io->path = path;
	segmap_path_hold(path);
	shift = disk->block_shift - path->block_shift;
	block = physical * disk->engine.blocks_per_segment + part->offset_blocks;
	rc = submit_to_base(io, block << shift, (uint64_t)part->length_blocks << shift);
	if (spdk_likely(rc == 0)) {
		return;
	}
	if (rc == -ENOMEM) {
		wait_for_memory(io);
		return;
	}
	segmap_path_release(path);
	container_done(io, SEGMAP_STATUS_IO_ERROR, now_ticks(io->channel), true);
}

/* ---- parts ---- */

static void
make_part(struct segmap_io *io)
{
	const struct segmap_disk *disk = io->channel->disk;
	uint32_t per_segment = disk->engine.blocks_per_segment;
	uint64_t segment, inside, length;

	if (spdk_likely(disk->segment_shift != SEGMAP_NO_SHIFT)) {
		segment = io->at >> disk->segment_shift;
		inside = io->at & (per_segment - 1);
	} else {
		segment = io->at / per_segment;
		inside = io->at % per_segment;
	}
	length = spdk_min(per_segment - inside, io->end - io->at);

	segmap_part_init(&io->part, io->part.operation, segment, (uint32_t)inside, (uint32_t)length);
	io->at += length;
}

static void
follow(struct segmap_io *io)
{
	switch (segmap_channel_submit(&io->channel->core, &io->part, now_ticks(io->channel))) {
	case SEGMAP_STEP_FORWARD:
		forward(io);
		return;
	case SEGMAP_STEP_ZEROES:
		fill_zeroes(io);
		part_ended(io, true);
		return;
	case SEGMAP_STEP_COMPLETE:
		part_ended(io, true);
		return;
	case SEGMAP_STEP_ASK_OWNER:
		ask_owner(io, owner_submit);
		return;
	}
}

static void
submit_part(struct segmap_io *io)
{
	make_part(io);
	follow(io);
}

/* ---- looking ahead: entries of large tables come from memory, several at a time ---- */

static struct segmap_io *
take_from_ring(struct segmap_disk_channel *channel)
{
	struct segmap_io *io = channel->ring[channel->ring_at];

	channel->ring_at = (channel->ring_at + 1) % SEGMAP_RING;
	channel->ring_count--;
	return io;
}

/* The end of a turn of the thread's loop: nothing more comes that would push them out. */
static void
drain_ring(void *ctx)
{
	struct segmap_disk_channel *channel = ctx;

	/* The channel may go with the last one. */
	for (uint32_t left = channel->ring_count; left > 0; left--) {
		follow(take_from_ring(channel));
	}
}

static void
look_ahead(struct segmap_io *io)
{
	struct segmap_disk_channel *channel = io->channel;
	struct segmap_table *table = &channel->disk->engine.table;

	make_part(io);
	if (io->part.segment < segmap_table_count(table)) {
		__builtin_prefetch(&atomic_load_explicit(&table->cells, memory_order_acquire)[io->part.segment]);
	}
	channel->ring[(channel->ring_at + channel->ring_count) % SEGMAP_RING] = io;
	if (channel->ring_count++ == 0) {
		segmap_inbox_put(&channel->paths->inbox, &channel->ring_message, drain_ring, channel);
	}
	if (channel->ring_count == SEGMAP_RING) {
		follow(take_from_ring(channel));
	}
}

static bool
is_busy(const struct segmap_disk_channel *channel)
{
	return channel->core.begun[0] + channel->core.begun[1] + channel->ring_count >= SEGMAP_RING;
}

static void
begin(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io, enum segmap_operation operation)
{
	struct segmap_io *io = (struct segmap_io *)bdev_io->driver_ctx;

	io->channel = spdk_io_channel_get_ctx(channel);
	io->status = SEGMAP_STATUS_OK;
	io->settled = true;
	io->part.operation = operation;
	io->part.io = (void *)(uintptr_t)++io->channel->io_tag;
	io->part.owner = io->channel;
	io->at = bdev_io->u.bdev.offset_blocks;
	io->end = io->at + bdev_io->u.bdev.num_blocks;
	if (io->channel->disk->prefetches && is_busy(io->channel)) {
		look_ahead(io);
	} else {
		submit_part(io);
	}
}

/* A flush is the owner's from the start: it goes to every container, whatever the entries say. */
static void
begin_flush(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io)
{
	struct segmap_io *io = (struct segmap_io *)bdev_io->driver_ctx;

	io->channel = spdk_io_channel_get_ctx(channel);
	io->status = SEGMAP_STATUS_OK;
	io->settled = true;
	io->at = io->end = 0;
	segmap_part_init(&io->part, SEGMAP_OPERATION_FLUSH, SEGMAP_NO_SEGMENT, 0, 0);
	io->part.io = (void *)(uintptr_t)++io->channel->io_tag;
	io->part.owner = io->channel;
	ask_owner(io, owner_submit);
}

static void
buffer_ready(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io, bool success)
{
	if (!success) {
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	begin(channel, bdev_io, SEGMAP_OPERATION_READ);
}

/* ---- reset and abort: what is parked is dropped, what has begun ends by itself ---- */

static void
complete_on_thread(void *ctx)
{
	complete_to_host(ctx);
}

static void
owner_reset(void *ctx)
{
	struct segmap_io *io = ctx;

	segmap_engine_reset(&io->channel->disk->engine, NULL);
	io->status = SEGMAP_STATUS_OK;
	tell_thread(io, complete_on_thread);
}

/* part.io is the tag of the I/O to drop: if that has ended meanwhile, it points out nothing. */
static void
owner_abort(void *ctx)
{
	struct segmap_io *io = ctx;
	struct segmap_engine *engine = &io->channel->disk->engine;
	uint32_t parked = engine->parked;

	segmap_engine_abort(engine, io->part.io);
	io->status = engine->parked < parked ? SEGMAP_STATUS_OK : SEGMAP_STATUS_NOT_FOUND;
	tell_thread(io, complete_on_thread);
}

static void
begin_abort(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io)
{
	struct segmap_io *io = (struct segmap_io *)bdev_io->driver_ctx;
	struct segmap_io *target = (struct segmap_io *)bdev_io->u.abort.bio_to_abort->driver_ctx;

	io->channel = spdk_io_channel_get_ctx(channel);
	io->part.io = target->part.io;
	ask_owner(io, owner_abort);
}

void
segmap_submit_request(struct spdk_io_channel *channel, struct spdk_bdev_io *bdev_io)
{
	switch (bdev_io->type) {
	case SPDK_BDEV_IO_TYPE_READ:
		if (spdk_likely(bdev_io->u.bdev.iovs != NULL && bdev_io->u.bdev.iovs[0].iov_base != NULL)) {
			begin(channel, bdev_io, SEGMAP_OPERATION_READ);
		} else {
			spdk_bdev_io_get_buf(bdev_io, buffer_ready, bdev_io->u.bdev.num_blocks * bdev_io->bdev->blocklen);
		}
		return;
	case SPDK_BDEV_IO_TYPE_WRITE:
		begin(channel, bdev_io, SEGMAP_OPERATION_WRITE);
		return;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		begin(channel, bdev_io, SEGMAP_OPERATION_UNMAP);
		return;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		begin(channel, bdev_io, SEGMAP_OPERATION_WRITE_ZEROES);
		return;
	case SPDK_BDEV_IO_TYPE_FLUSH:
		begin_flush(channel, bdev_io);
		return;
	case SPDK_BDEV_IO_TYPE_RESET:
		((struct segmap_io *)bdev_io->driver_ctx)->channel = spdk_io_channel_get_ctx(channel);
		ask_owner((struct segmap_io *)bdev_io->driver_ctx, owner_reset);
		return;
	case SPDK_BDEV_IO_TYPE_ABORT:
		begin_abort(channel, bdev_io);
		return;
	default:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
}

/* ---- what the owner wants done on the channel's thread ---- */

static void
forward_owned(void *ctx)
{
	struct segmap_io *io = ctx;
	const struct segmap_lease *lease = &g_segmap.plane.lease;

	/* Meanwhile the lease may have ended: then it has not begun after all, and the owner decides again. */
	if (io->part.begun_epoch != segmap_lease_epoch(lease) || spdk_get_ticks() >= atomic_load(&lease->until_ticks)) {
		ask_owner(io, owner_withdraw);
		return;
	}
	forward(io);
}

static void
zeroes_owned(void *ctx)
{
	fill_zeroes(ctx);
	part_ended(ctx, false);
}

static void
complete_owned(void *ctx)
{
	part_ended(ctx, false);
}

static void
flush_owned(void *ctx)
{
	segmap_flush(ctx);
}

void
segmap_effect_forward(void *ctx, struct segmap_part *part)
{
	struct segmap_io *io = (struct segmap_io *)part;

	(void)ctx;
	if (part->operation == SEGMAP_OPERATION_FLUSH) {
		ask_owner(io, flush_owned);
	} else {
		tell_thread(io, forward_owned);
	}
}

void
segmap_effect_zeroes(void *ctx, struct segmap_part *part)
{
	(void)ctx;
	tell_thread((struct segmap_io *)part, zeroes_owned);
}

void
segmap_effect_complete(void *ctx, struct segmap_part *part)
{
	(void)ctx;
	tell_thread((struct segmap_io *)part, complete_owned);
}
