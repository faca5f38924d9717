/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A flush of a virtual disk: of every container that its table lists, and of every one it has written to since the last
 * good flush. On the owner's thread and paths.
 *
 * It fails if a container may have lost what was not flushed there, whoever had written it, since flushes of this disk
 * last told of its losses. A failure tells of what was lost before its flush began; a loss while it ran is told again by
 * the next one, since writes that ended after its beginning may be among what was lost. If a flush fails, what it was for
 * is left to the next one; one that begins before another has ended answers for what that one is for, too.
 */
#include "vbdev_segmap.h"

/* One container's loss count: what had been told when the flush began, and what it was then. */
struct watch {
	uint32_t slot;
	uint64_t told;
	uint64_t losses;
};

struct segmap_flush {
	struct segmap_io *io;
	struct segmap_slots touched;
	uint32_t left;
	enum segmap_status status;
	TAILQ_ENTRY(segmap_flush) link;
	uint32_t watched;
	struct watch watches[];
};

/* One container's part of it. */
struct flush_step {
	struct segmap_flush *flush;
	struct segmap_path *path;
	struct spdk_bdev_io_wait_entry wait;
};

/* Slots of what was written since the last flush, and of what flushes that have not ended answer for. */
static void
take_touched(struct segmap_disk *disk, struct segmap_slots *touched)
{
	const struct segmap_flush *earlier;

	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		touched->words[i] = atomic_exchange(&disk->touched[i], 0);
	}
	TAILQ_FOREACH(earlier, &disk->flushes, link) {
		for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
			touched->words[i] |= earlier->touched.words[i];
		}
	}
}

static void
give_back(struct segmap_disk *disk, const struct segmap_slots *touched)
{
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		atomic_fetch_or(&disk->touched[i], touched->words[i]);
	}
}

void
segmap_watch_slot(struct segmap_disk *disk, uint32_t slot)
{
	uint64_t touched = atomic_load(&disk->touched[slot / 64]);
	const struct segmap_flush *flush;

	TAILQ_FOREACH(flush, &disk->flushes, link) {
		touched |= flush->touched.words[slot / 64];
	}
	if ((touched >> (slot % 64) & 1) == 0) {
		disk->losses_told[slot] = g_segmap.containers[slot].losses;
	}
}

/* True if one of the watched containers may have lost something that has not been told: told now, and done with. */
static bool
has_lost(struct segmap_disk *disk, struct segmap_flush *flush)
{
	bool lost = false;

	for (uint32_t i = 0; i < flush->watched; i++) {
		const struct watch *watch = &flush->watches[i];

		disk->losses_told[watch->slot] = spdk_max(disk->losses_told[watch->slot], watch->losses);
		if (g_segmap.containers[watch->slot].losses != watch->told) {
			segmap_slots_remove(&flush->touched, watch->slot);
			lost = true;
		}
	}
	return lost;
}

static void
flush_ended(struct segmap_flush *flush)
{
	struct segmap_io *io = flush->io;
	struct segmap_disk *disk = io->channel->disk;

	TAILQ_REMOVE(&disk->flushes, flush, link);
	if (has_lost(disk, flush)) {
		flush->status = SEGMAP_STATUS_IO_ERROR;
	}
	if (flush->status != SEGMAP_STATUS_OK) {
		give_back(disk, &flush->touched);
	}
	io->part.status = flush->status;
	free(flush);
	segmap_engine_complete(&disk->engine, &io->part, true, segmap_now_ns());
}

static void
step_ended(struct segmap_flush *flush, bool success)
{
	if (!success) {
		flush->status = SEGMAP_STATUS_IO_ERROR;
	}
	if (--flush->left == 0) {
		flush_ended(flush);
	}
}

static void
end_step(struct flush_step *step, bool success)
{
	struct segmap_flush *flush = step->flush;

	segmap_path_release(step->path);
	free(step);
	step_ended(flush, success);
}

static void
base_flushed(struct spdk_bdev_io *base_io, bool success, void *ctx)
{
	spdk_bdev_free_io(base_io);
	end_step(ctx, success);
}

static void
flush_base(void *ctx)
{
	struct flush_step *step = ctx;
	struct segmap_path *path = step->path;
	struct spdk_bdev *bdev = path->base->bdev;
	int rc = spdk_bdev_flush_blocks(path->base->desc, path->channel, 0, spdk_bdev_get_num_blocks(bdev), base_flushed,
					step);

	if (rc == -ENOMEM) {
		step->wait = (struct spdk_bdev_io_wait_entry) { .bdev = bdev, .cb_fn = flush_base, .cb_arg = step };
		rc = spdk_bdev_queue_io_wait(bdev, path->channel, &step->wait);
	}
	if (rc != 0) {
		end_step(step, false);
	}
}

static void
flush_slot(struct segmap_flush *flush, uint32_t slot)
{
	struct segmap_path *path = segmap_path_find(segmap_owner_paths(), slot);
	struct flush_step *step;

	flush->left++;
	if (path == NULL) {
		step_ended(flush, false);
		return;
	}
	if (!path->base->flushes) {
		step_ended(flush, true);
		return;
	}
	step = malloc(sizeof(*step));
	if (step == NULL) {
		step_ended(flush, false);
		return;
	}
	*step = (struct flush_step) { .flush = flush, .path = path };
	segmap_path_hold(path);
	flush_base(step);
}

/* A flush with a watch for each slot; NULL if out of memory. */
static struct segmap_flush *
flush_of(const struct segmap_disk *disk, const struct segmap_slots *touched, const struct segmap_slots *all)
{
	struct segmap_flush *flush;
	uint32_t count = 0;

	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		count += (uint32_t)__builtin_popcountll(all->words[i]);
	}
	flush = calloc(1, sizeof(*flush) + count * sizeof(flush->watches[0]));
	if (flush == NULL) {
		return NULL;
	}
	flush->touched = *touched;
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		if (segmap_slots_have(all, slot)) {
			flush->watches[flush->watched++] = (struct watch) {
				.slot = slot,
				.told = disk->losses_told[slot],
				.losses = g_segmap.containers[slot].losses,
			};
		}
	}
	return flush;
}

void
segmap_flush(struct segmap_io *io)
{
	struct segmap_disk *disk = io->channel->disk;
	struct segmap_slots touched, all;
	struct segmap_flush *flush;

	take_touched(disk, &touched);
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		all.words[i] = touched.words[i] | disk->engine.slots.words[i];
	}
	flush = flush_of(disk, &touched, &all);
	if (flush == NULL) {
		give_back(disk, &touched);
		io->part.status = SEGMAP_STATUS_IO_ERROR;
		segmap_engine_complete(&disk->engine, &io->part, true, segmap_now_ns());
		return;
	}
	flush->io = io;
	flush->left = 1; /* for this function */
	TAILQ_INSERT_TAIL(&disk->flushes, flush, link);
	for (uint32_t i = 0; i < flush->watched; i++) {
		flush_slot(flush, flush->watches[i].slot);
	}
	step_ended(flush, true);
}
