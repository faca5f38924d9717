/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Paths: each thread's channels of the bdevs behind the containers, made when they are first needed.
 *
 * A base outlives every path to it. To close one, the owner first takes it from its container, so that no new path can
 * be made, then visits every thread to close its path, which goes when its last I/O has ended; the last path gone, the
 * bdev is closed. A thread finds a base and takes a reference without being interrupted by that visit.
 */
#include "vbdev_segmap.h"

#include "spdk/log.h"
#include "spdk/util.h"

#define POLL_US 10000
#define CLAIM_KEY UINT64_C(0x5345474d4150)

static void
base_gone(void *ctx)
{
	struct segmap_base *base = ctx;

	segmap_base_disconnect(base);
	spdk_bdev_close(base->desc);
	free(base);
}

void
segmap_base_ref(struct segmap_base *base)
{
	atomic_fetch_add(&base->refs, 1);
}

void
segmap_base_unref(struct segmap_base *base)
{
	if (atomic_fetch_sub(&base->refs, 1) == 1) {
		segmap_tell_owner(&base->gone, base_gone, base);
	}
}

static void
path_free(struct segmap_path *path)
{
	assert(path->inflight == 0);
	spdk_put_io_channel(path->channel);
	segmap_base_unref(path->base);
	free(path);
}

static struct segmap_path *
path_open(struct segmap_base *base)
{
	struct segmap_path *path = calloc(1, sizeof(*path));

	if (path == NULL) {
		return NULL;
	}
	path->channel = spdk_bdev_get_io_channel(base->desc);
	if (path->channel == NULL) {
		free(path);
		return NULL;
	}
	path->base = base;
	path->desc = base->desc;
	path->block_shift = base->block_shift;
	path->unmaps = base->unmaps;
	segmap_base_ref(base);
	return path;
}

struct segmap_path *
segmap_path_find(struct segmap_thread *thread, uint32_t slot)
{
	struct segmap_path *path = thread->paths[slot];
	struct segmap_base *base;

	if (spdk_likely(path != NULL)) {
		return path;
	}
	base = atomic_load(&g_segmap.containers[slot].base);
	if (base == NULL) {
		return NULL;
	}
	return thread->paths[slot] = path_open(base);
}

void
segmap_path_release(struct segmap_path *path)
{
	path->inflight--;
	if (spdk_unlikely(path->closing) && path->inflight == 0) {
		path_free(path);
	}
}

static int
poll_inbox(void *ctx)
{
	segmap_inbox_poll(ctx);
	return SPDK_POLLER_IDLE;
}

int
segmap_thread_create(void *io_device, void *ctx)
{
	struct segmap_thread *thread = ctx;

	(void)io_device;
	memset(thread, 0, sizeof(*thread));
	segmap_inbox_init(&thread->inbox);
	thread->poller = spdk_poller_register(poll_inbox, &thread->inbox, POLL_US);
	return thread->poller != NULL ? 0 : -ENOMEM;
}

void
segmap_thread_destroy(void *io_device, void *ctx)
{
	struct segmap_thread *thread = ctx;

	(void)io_device;
	spdk_poller_unregister(&thread->poller);
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		if (thread->paths[slot] != NULL) {
			path_free(thread->paths[slot]);
		}
	}
}

struct segmap_thread *
segmap_owner_paths(void)
{
	return spdk_io_channel_get_ctx(g_segmap.owner_channel);
}

static void
close_path(struct spdk_io_channel_iter *i)
{
	struct segmap_base *base = spdk_io_channel_iter_get_ctx(i);
	struct segmap_thread *thread = spdk_io_channel_get_ctx(spdk_io_channel_iter_get_channel(i));
	struct segmap_path *path = thread->paths[base->slot];

	if (path != NULL && path->base == base) {
		thread->paths[base->slot] = NULL;
		path->closing = true;
		if (path->inflight == 0) {
			path_free(path);
		}
	}
	spdk_for_each_channel_continue(i, 0);
}

static void
paths_closed(struct spdk_io_channel_iter *i, int status)
{
	(void)status;
	segmap_base_unref(spdk_io_channel_iter_get_ctx(i));
}

void
segmap_base_close(struct segmap_base *base)
{
	spdk_for_each_channel(&g_segmap, close_path, base, paths_closed);
}

void
segmap_container_lose(struct segmap_container *container)
{
	struct segmap_base *base = atomic_exchange(&container->base, NULL);

	if (base != NULL) {
		container->losses += spdk_bdev_has_write_cache(base->bdev);
		segmap_base_close(base);
	}
}

static void
base_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
	struct segmap_base *base = ctx;
	struct segmap_container *container = &g_segmap.containers[base->slot];

	if (type != SPDK_BDEV_EVENT_REMOVE) {
		return;
	}
	base->removed = true;
	if (atomic_load(&container->base) == base) {
		SPDK_NOTICELOG("container slot %u: bdev %s goes, its I/O fails\n", base->slot, spdk_bdev_get_name(bdev));
		segmap_container_lose(container);
	}
}

static int
claim(struct spdk_bdev_desc *desc)
{
	struct spdk_bdev_claim_opts opts;

	spdk_bdev_claim_opts_init(&opts, sizeof(opts));
	snprintf(opts.name, sizeof(opts.name), "segmap");
	opts.shared_claim_key = CLAIM_KEY;
	return spdk_bdev_module_claim_bdev_desc(desc, SPDK_BDEV_CLAIM_READ_MANY_WRITE_SHARED, &opts, &g_segmap_module);
}

/* These do their I/O themselves, here: it has ended when they say so. Others may speak of a lost connection. */
static bool
is_local(const struct spdk_bdev *bdev)
{
	static const char *const modules[] = { "aio", "malloc", "null", "uring" };
	const char *module = spdk_bdev_get_module_name(bdev);

	for (size_t i = 0; i < SPDK_COUNTOF(modules); i++) {
		if (strcmp(module, modules[i]) == 0) {
			return true;
		}
	}
	return false;
}

static bool
is_container(const struct spdk_bdev *bdev)
{
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		struct segmap_base *base = atomic_load(&g_segmap.containers[slot].base);

		if (base != NULL && base->bdev == bdev) {
			return true;
		}
	}
	return false;
}

int
segmap_base_open(const char *name, uint32_t slot, struct segmap_base **opened)
{
	struct segmap_base *base = calloc(1, sizeof(*base));
	int rc;

	if (base == NULL) {
		return -ENOMEM;
	}
	base->slot = slot;
	rc = spdk_bdev_open_ext(name, false, base_event, base, &base->desc);
	if (rc != 0) {
		goto free_base;
	}
	base->bdev = spdk_bdev_desc_get_bdev(base->desc);
	if (spdk_bdev_get_md_size(base->bdev) != 0) {
		rc = -ENOTSUP;
		goto close_desc;
	}
	rc = is_container(base->bdev) ? -EBUSY : claim(base->desc);
	if (rc == 0) {
		rc = segmap_base_connect(base);
	}
	if (rc != 0) {
		goto close_desc;
	}
	base->answers = is_local(base->bdev);
	base->block_size = spdk_bdev_get_block_size(base->bdev);
	base->block_shift = spdk_u32log2(base->block_size);
	base->unmaps = spdk_bdev_io_type_supported(base->bdev, SPDK_BDEV_IO_TYPE_UNMAP);
	base->flushes = spdk_bdev_io_type_supported(base->bdev, SPDK_BDEV_IO_TYPE_FLUSH);
	atomic_store(&base->refs, 1);
	*opened = base;
	return 0;

close_desc:
	spdk_bdev_close(base->desc);
free_base:
	free(base);
	return rc;
}
