/* SPDX-License-Identifier: BSD-3-Clause
 *
 * I/O that has failed for its host, but may still be done by its container: its connection was lost (design: a lease
 * does not prove that old I/O has ended). Barriers go on waiting for it.
 *
 * What settles it: its container was attached anew, over the same connection or as the same host to the same place. If
 * the container has moved since, only the end of the processes at its former places does.
 * The part stays counted where it was; its channel is held until then, and so is its disk.
 */
#include "vbdev_segmap.h"

#include "spdk/log.h"
#include "spdk/nvme_spec.h"

struct segmap_unsettled {
	struct segmap_part part; /* a copy: the host's I/O is gone */
	struct segmap_disk *disk;
	struct segmap_disk_channel *channel;
	struct spdk_io_channel *hold;
	uint64_t settles; /* the container's, when it failed */
	uint64_t life;
	uint64_t place; /* of the base that it was sent to */
	bool drained;
	struct segmap_message message;
	TAILQ_ENTRY(segmap_unsettled) link;
};

/* What was meant for containers that have left their slots since: nothing says when that has ended. */
static struct segmap_unsettled_list g_orphans = TAILQ_HEAD_INITIALIZER(g_orphans);

bool
segmap_may_still_land(const struct segmap_base *base, const struct spdk_bdev_io *base_io)
{
	uint32_t cdw0;
	int sct, sc;

	if (base->answers) {
		return false;
	}
	spdk_bdev_io_get_nvme_status(base_io, &cdw0, &sct, &sc);
	if (sct != SPDK_NVME_SCT_GENERIC) {
		return sct == SPDK_NVME_SCT_PATH;
	}
	/* The last one is also what comes of failures that are not NVMe's, such as a connection that is given up. */
	return sc == SPDK_NVME_SC_ABORTED_SQ_DELETION || sc == SPDK_NVME_SC_ABORTED_BY_REQUEST ||
	       sc == SPDK_NVME_SC_ABORTED_POWER_LOSS || sc == SPDK_NVME_SC_INTERNAL_DEVICE_ERROR;
}

static void
owner_settled(void *ctx)
{
	struct segmap_unsettled *unsettled = ctx;
	struct segmap_disk *disk = unsettled->disk;

	if (unsettled->drained) {
		segmap_engine_drained(&disk->engine);
	}
	free(unsettled);
	if (atomic_fetch_sub(&disk->unsettled, 1) == 1) {
		segmap_disk_settled(disk);
	}
}

static void
channel_settle(void *ctx)
{
	struct segmap_unsettled *unsettled = ctx;
	struct segmap_disk_channel *channel = unsettled->channel;

	if (unsettled->part.counted == &channel->core) {
		unsettled->drained = segmap_channel_settle(&channel->core, &unsettled->part);
	}
	spdk_put_io_channel(unsettled->hold);
	segmap_tell_owner(&unsettled->message, owner_settled, unsettled);
}

static void
settle(struct segmap_unsettled *unsettled)
{
	struct segmap_engine *engine = &unsettled->disk->engine;

	if (unsettled->part.counted == &engine->own) {
		segmap_engine_settle(engine, &unsettled->part);
	}
	segmap_inbox_put(&unsettled->channel->paths->inbox, &unsettled->message, channel_settle, unsettled);
}

static void
owner_unsettled(void *ctx)
{
	struct segmap_unsettled *unsettled = ctx;
	struct segmap_container *container = &g_segmap.containers[segmap_slot_of(unsettled->part.entry)];

	if (g_segmap.stopping) {
		settle(unsettled);
	} else if (unsettled->life != atomic_load(&container->life)) {
		TAILQ_INSERT_TAIL(&g_orphans, unsettled, link);
	} else if (unsettled->settles != atomic_load(&container->settles)) {
		settle(unsettled);
	} else if (unsettled->place != container->places) {
		TAILQ_INSERT_TAIL(&container->stranded, unsettled, link);
	} else {
		TAILQ_INSERT_TAIL(&container->unsettled, unsettled, link);
	}
}

void
segmap_unsettle(struct segmap_io *io)
{
	struct segmap_disk *disk = io->channel->disk;
	struct segmap_container *container = &g_segmap.containers[segmap_slot_of(io->part.entry)];
	struct segmap_unsettled *unsettled = calloc(1, sizeof(*unsettled));

	io->settled = false;
	atomic_fetch_add(&disk->unsettled, 1);
	if (unsettled == NULL) {
		SPDK_ERRLOG("%s: out of memory: barriers will wait for a lost I/O in vain\n", disk->bdev.name);
		return;
	}
	unsettled->part = io->part;
	unsettled->disk = disk;
	unsettled->channel = io->channel;
	unsettled->hold = spdk_get_io_channel(disk);
	unsettled->life = atomic_load(&container->life);
	unsettled->settles = atomic_load(&container->settles);
	unsettled->place = io->path->base->place;
	segmap_tell_owner(&unsettled->message, owner_unsettled, unsettled);
}

static void
settle_list(struct segmap_unsettled_list *list)
{
	struct segmap_unsettled *unsettled;

	while ((unsettled = TAILQ_FIRST(list)) != NULL) {
		TAILQ_REMOVE(list, unsettled, link);
		settle(unsettled);
	}
}

void
segmap_container_settle(struct segmap_container *container, bool everywhere)
{
	atomic_fetch_add(&container->settles, 1);
	settle_list(&container->unsettled);
	if (everywhere) {
		settle_list(&container->stranded);
	}
}

void
segmap_container_strand(struct segmap_container *container)
{
	container->places++;
	TAILQ_CONCAT(&container->stranded, &container->unsettled, link);
}

void
segmap_settle_all(void)
{
	settle_list(&g_orphans);
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		segmap_container_settle(&g_segmap.containers[slot], true);
	}
}
