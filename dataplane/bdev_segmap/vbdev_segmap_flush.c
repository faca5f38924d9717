/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A flush of a virtual disk: of every container that its table lists and of every one it has written to since.
 *
 * It runs on the owner's thread and paths. A container that may have lost writes since the disk's last flush fails the
 * flush, once (design: a flush that could have lost something fails); if a flush fails otherwise, what it was for is
 * left to the next one.
 */
#include "vbdev_segmap.h"

struct flush {
	struct segmap_io *io;
	struct segmap_slots touched;
	uint32_t left;
	enum segmap_status status;
};

/* One container's part of it. */
struct flush_step {
	struct flush *flush;
	struct segmap_path *path;
};

static void
take_touched(struct segmap_disk *disk, struct segmap_slots *touched)
{
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		touched->words[i] = atomic_exchange(&disk->touched[i], 0);
	}
}

static void
give_back(struct segmap_disk *disk, const struct segmap_slots *touched)
{
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		atomic_fetch_or(&disk->touched[i], touched->words[i]);
	}
}

/* True if a container has lost, since the last flush, what this one was for. Told once. */
static bool
lost_writes(struct segmap_disk *disk, const struct segmap_slots *touched)
{
	bool lost = false;

	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		uint64_t losses = g_segmap.containers[slot].losses;

		if (disk->losses_seen[slot] != losses) {
			lost = lost || segmap_slots_have(touched, slot);
			disk->losses_seen[slot] = losses;
		}
	}
	return lost;
}

static void
flush_ended(struct flush *flush)
{
	struct segmap_io *io = flush->io;
	struct segmap_disk *disk = io->channel->disk;

	if (flush->status != SEGMAP_STATUS_OK) {
		give_back(disk, &flush->touched);
	}
	if (lost_writes(disk, &flush->touched)) {
		flush->status = SEGMAP_STATUS_IO_ERROR;
	}
	io->part.status = flush->status;
	free(flush);
	segmap_engine_complete(&disk->engine, &io->part, true, segmap_now_ns());
}

static void
step_ended(struct flush *flush, bool success)
{
	if (!success) {
		flush->status = SEGMAP_STATUS_IO_ERROR;
	}
	if (--flush->left == 0) {
		flush_ended(flush);
	}
}

static void
base_flushed(struct spdk_bdev_io *base_io, bool success, void *ctx)
{
	struct flush_step *step = ctx;
	struct flush *flush = step->flush;

	spdk_bdev_free_io(base_io);
	segmap_path_release(step->path);
	free(step);
	step_ended(flush, success);
}

static void
flush_slot(struct flush *flush, uint32_t slot)
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
	if (spdk_bdev_flush_blocks(path->base->desc, path->channel, 0, spdk_bdev_get_num_blocks(path->base->bdev),
				   base_flushed, step) != 0) {
		segmap_path_release(path);
		free(step);
		step_ended(flush, false);
	}
}

void
segmap_flush(struct segmap_io *io)
{
	struct segmap_disk *disk = io->channel->disk;
	struct flush *flush = calloc(1, sizeof(*flush));

	if (flush == NULL) {
		io->part.status = SEGMAP_STATUS_IO_ERROR;
		segmap_engine_complete(&disk->engine, &io->part, true, segmap_now_ns());
		return;
	}
	flush->io = io;
	flush->left = 1; /* for this function */
	take_touched(disk, &flush->touched);
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		if (segmap_slots_have(&disk->engine.slots, slot) || segmap_slots_have(&flush->touched, slot)) {
			flush_slot(flush, slot);
		}
	}
	step_ended(flush, true);
}
