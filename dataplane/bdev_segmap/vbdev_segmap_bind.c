/* SPDX-License-Identifier: BSD-3-Clause
 *
 * BIND_SLOT and UNBIND_SLOT: a bdev becomes a container, once its label says so (design: containers are who they say).
 *
 * INITIALIZE writes the label, and refuses a bdev that holds something: another container's label, or bytes in its first
 * or last segment. FORCE writes over it. RENEW writes a verified label anew, with the store's newer generation. A slot is
 * bound by one request at a time; a slot whose bdev was lost may be bound again to the same container. What that had not
 * ended when it was lost has ended if the bdev leads to the same place, as the same host.
 */
#include "vbdev_segmap_socket.h"

#include "spdk/env.h"
#include "spdk/util.h"

#define CHUNK_BYTES (1u << 20)

/* One request under way. */
struct bind {
	struct segmap_frame *request;
	struct segmap_container *container;
	struct segmap_base *base;
	struct spdk_io_channel *channel;
	struct segmap_label wanted;
	uint32_t slot;
	uint32_t flags;
	bool opened; /* by this request: the container has no base yet */
	uint64_t disconnects;
	uint8_t *buffer;
	uint64_t at; /* bytes: the scan for foreign data */
	uint64_t until;
	void (*next)(struct bind *bind);
};

static void
free_bind(struct bind *bind)
{
	if (bind->channel != NULL) {
		spdk_put_io_channel(bind->channel);
	}
	spdk_dma_free(bind->buffer);
	bind->container->binding = false;
	free(bind);
}

static void
fail(struct bind *bind, enum segmap_status status, const char *detail)
{
	struct segmap_base *base = bind->base;
	bool opened = bind->opened;

	segmap_answer(bind->request, status, detail);
	free_bind(bind);
	if (opened) {
		segmap_base_close(base);
	} else {
		segmap_base_unref(base);
	}
}

static void
io_done(struct spdk_bdev_io *base_io, bool success, void *ctx)
{
	struct bind *bind = ctx;

	spdk_bdev_free_io(base_io);
	if (success) {
		bind->next(bind);
	} else {
		fail(bind, SEGMAP_STATUS_IO_ERROR, "an I/O of the bdev failed");
	}
}

static void
begun(struct bind *bind, int rc)
{
	if (rc != 0) {
		fail(bind, SEGMAP_STATUS_IO_ERROR, "an I/O of the bdev could not be begun");
	}
}

static void
read_bytes(struct bind *bind, uint64_t offset, uint64_t length, void (*next)(struct bind *bind))
{
	bind->next = next;
	begun(bind, spdk_bdev_read(bind->base->desc, bind->channel, bind->buffer, offset, length, io_done, bind));
}

/* The container is this base from now on. What comes from before has ended if it leads where the last one led, or if
 * the controller knows that the process which the last one led to is over. */
static void
adopt(struct segmap_container *container, struct segmap_base *base, bool ended)
{
	char *origin = segmap_base_origin(base);

	if (ended || (origin != NULL && container->origin != NULL && strcmp(origin, container->origin) == 0)) {
		segmap_container_settle(container, ended);
	} else {
		segmap_container_strand(container);
	}
	free(container->origin);
	container->origin = origin;
	base->place = container->places;
	atomic_store(&container->base, base);
}

static void
bound(struct bind *bind)
{
	struct segmap_container *container = bind->container;
	struct segmap_base *base = bind->base;
	bool cache = spdk_bdev_has_write_cache(base->bdev), opened = bind->opened;

	if (base->removed || (!opened && atomic_load(&container->base) != base)) {
		fail(bind, SEGMAP_STATUS_NOT_FOUND, "the bdev was removed meanwhile");
		return;
	}
	if (segmap_base_disconnects(base) != bind->disconnects) {
		fail(bind, SEGMAP_STATUS_IO_ERROR, "the connection of the bdev was lost meanwhile");
		return;
	}
	if (segmap_plane_bind_slot(&g_segmap.plane, bind->slot, bind->wanted.container) != SEGMAP_STATUS_OK) {
		fail(bind, SEGMAP_STATUS_EXISTS, "the slot is bound to another container");
		return;
	}
	container->label = bind->wanted;
	container->bound = true;
	segmap_base_label(base, &bind->wanted);
	atomic_store(&container->segment_count, bind->wanted.segment_count);
	if (opened) {
		adopt(container, base, (bind->flags & SEGMAP_ATTACH_ENDED) != 0);
	}
	segmap_answer_attached(bind->request, bind->wanted.segment_count, base->block_size, cache);
	free_bind(bind);
	if (!opened) {
		segmap_base_unref(base);
	}
}

static void
flush_label(struct bind *bind)
{
	if (!bind->base->flushes) {
		bound(bind);
		return;
	}
	bind->next = bound;
	begun(bind, spdk_bdev_flush_blocks(bind->base->desc, bind->channel, 0,
					   spdk_bdev_get_num_blocks(bind->base->bdev), io_done, bind));
}

static void
write_label(struct bind *bind)
{
	segmap_label_encode(&bind->wanted, bind->buffer);
	bind->next = flush_label;
	begun(bind, spdk_bdev_write(bind->base->desc, bind->channel, bind->buffer, 0, SEGMAP_LABEL_BYTES, io_done, bind));
}

static void scan(struct bind *bind);

static void
scanned(struct bind *bind)
{
	uint64_t length = spdk_min(CHUNK_BYTES, bind->until - bind->at);

	if (bind->buffer[0] != 0 || memcmp(bind->buffer, bind->buffer + 1, length - 1) != 0) {
		fail(bind, SEGMAP_STATUS_FOREIGN_DATA, "the bdev holds data in its first or last segment");
		return;
	}
	bind->at += length;
	scan(bind);
}

/* Segment 0, then the last one. */
static void
scan(struct bind *bind)
{
	uint64_t size = bind->wanted.segment_size, last = (bind->wanted.segment_count - 1) * size;

	if (bind->at == size) {
		bind->at = last;
		bind->until = last + size;
	} else if (bind->at == bind->until) {
		write_label(bind);
		return;
	}
	read_bytes(bind, bind->at, spdk_min(CHUNK_BYTES, bind->until - bind->at), scanned);
}

static bool
is_same_container(const struct segmap_label *a, const struct segmap_label *b)
{
	return memcmp(a->cluster, b->cluster, sizeof(a->cluster)) == 0 &&
	       memcmp(a->container, b->container, sizeof(a->container)) == 0;
}

static void
initialise(struct bind *bind, const struct segmap_label *found)
{
	if ((bind->flags & SEGMAP_ATTACH_FORCE) != 0 || (found != NULL && is_same_container(found, &bind->wanted))) {
		write_label(bind);
	} else if (found != NULL) {
		fail(bind, SEGMAP_STATUS_FOREIGN_DATA, "the bdev is another container");
	} else {
		bind->until = bind->wanted.segment_size;
		scan(bind);
	}
}

/* The label found is the right one. */
static void
renew(struct bind *bind, const struct segmap_label *found)
{
	if ((bind->flags & SEGMAP_ATTACH_RENEW) != 0 && found->generation < bind->wanted.generation) {
		write_label(bind);
	} else {
		bind->wanted = *found;
		bound(bind);
	}
}

static void
label_read(struct bind *bind)
{
	struct segmap_label found;
	const char *why = segmap_label_decode(bind->buffer, &found);

	if ((bind->flags & SEGMAP_ATTACH_INITIALIZE) != 0) {
		initialise(bind, why == NULL ? &found : NULL);
		return;
	}
	if (why == NULL) {
		why = segmap_label_verify(&bind->wanted, &found);
	}
	if (why != NULL) {
		fail(bind, SEGMAP_STATUS_LABEL_MISMATCH, why);
		return;
	}
	renew(bind, &found);
}

/* The label that the request describes; a segment count of 0 means: as many as there are. */
static enum segmap_status
want_label(const struct segmap_wire_bind_slot *body, struct spdk_bdev *bdev, struct segmap_label *wanted)
{
	uint64_t size = body->segment_size, block = spdk_bdev_get_block_size(bdev), whole;

	if (size < SEGMAP_SEGMENT_SIZE_MIN || size > SEGMAP_SEGMENT_SIZE_MAX || size % block != 0 ||
	    SEGMAP_LABEL_BYTES % block != 0) {
		return SEGMAP_STATUS_BAD_MESSAGE;
	}
	whole = spdk_bdev_get_num_blocks(bdev) / (size / block);
	memcpy(wanted->cluster, body->cluster, sizeof(wanted->cluster));
	memcpy(wanted->container, body->container, sizeof(wanted->container));
	wanted->generation = body->generation;
	wanted->segment_size = size;
	wanted->segment_count = body->segment_count != 0 ? body->segment_count : whole;
	return wanted->segment_count >= 2 && wanted->segment_count <= whole ? SEGMAP_STATUS_OK :
									      SEGMAP_STATUS_OUT_OF_RANGE;
}

static const char *
open_failure(int rc)
{
	switch (rc) {
	case -ENOTSUP:
		return "bdevs with metadata cannot be containers";
	case -ENOMEM:
		return "out of memory";
	default:
		return "the bdev is claimed already, or cannot be opened";
	}
}

static enum segmap_status
open_status(int rc)
{
	switch (rc) {
	case -EBUSY:
	case -EPERM:
		return SEGMAP_STATUS_BUSY;
	case -ENOTSUP:
		return SEGMAP_STATUS_UNSUPPORTED;
	case -ENOMEM:
		return SEGMAP_STATUS_LIMIT;
	default:
		return SEGMAP_STATUS_NOT_FOUND;
	}
}

/* Read the label of the base, which the container has already, or of one that is opened for it. */
static void
begin(struct segmap_frame *request, const struct segmap_wire_bind_slot *body, const char *bdev_name,
      const struct segmap_label *wanted, struct segmap_base *base)
{
	struct bind *bind = calloc(1, sizeof(*bind));
	int rc;

	if (bind == NULL) {
		segmap_answer(request, SEGMAP_STATUS_LIMIT, "out of memory");
		return;
	}
	bind->opened = base == NULL;
	bind->base = base;
	rc = base == NULL ? segmap_base_open(bdev_name, body->slot, &bind->base) : 0;
	if (rc != 0) {
		free(bind);
		segmap_answer(request, open_status(rc), open_failure(rc));
		return;
	}
	if (base != NULL) {
		segmap_base_ref(base);
	}
	bind->request = request;
	bind->container = &g_segmap.containers[body->slot];
	bind->container->binding = true;
	bind->slot = body->slot;
	bind->flags = base == NULL ? body->flags : body->flags & SEGMAP_ATTACH_RENEW;
	bind->wanted = *wanted;
	bind->disconnects = segmap_base_disconnects(bind->base);
	bind->channel = spdk_bdev_get_io_channel(bind->base->desc);
	bind->buffer = spdk_dma_zmalloc(CHUNK_BYTES, SEGMAP_LABEL_BYTES, NULL);
	if (bind->channel == NULL || bind->buffer == NULL) {
		fail(bind, SEGMAP_STATUS_LIMIT, "out of memory");
		return;
	}
	read_bytes(bind, 0, SEGMAP_LABEL_BYTES, label_read);
}

void
segmap_bind_slot(struct segmap_frame *request, const struct segmap_wire_bind_slot *body, const char *bdev_name)
{
	struct segmap_container *container = &g_segmap.containers[body->slot];
	struct segmap_base *base = atomic_load(&container->base);
	struct spdk_bdev *bdev = spdk_bdev_get_by_name(bdev_name);
	struct segmap_label wanted = { .generation = 0 };
	enum segmap_status status;

	if (container->binding) {
		segmap_answer(request, SEGMAP_STATUS_BUSY, "the slot is being bound");
		return;
	}
	if (container->bound && memcmp(container->label.container, body->container, 16) != 0) {
		segmap_answer(request, SEGMAP_STATUS_EXISTS, "the slot is bound to another container");
		return;
	}
	if (bdev == NULL) {
		segmap_answer(request, SEGMAP_STATUS_NOT_FOUND, "there is no such bdev");
		return;
	}
	if (base != NULL && base->bdev != bdev) {
		segmap_answer(request, SEGMAP_STATUS_EXISTS, "the slot is bound to another bdev");
		return;
	}
	status = want_label(body, bdev, &wanted);
	if (status != SEGMAP_STATUS_OK) {
		segmap_answer(request, status, "the bdev cannot be cut like this");
	} else {
		begin(request, body, bdev_name, &wanted, base);
	}
}

void
segmap_unbind_slot(struct segmap_frame *request, uint32_t slot)
{
	struct segmap_container *container = &g_segmap.containers[slot];
	enum segmap_status status;

	if (container->binding) {
		segmap_answer(request, SEGMAP_STATUS_BUSY, "the slot is being bound");
		return;
	}
	if (!TAILQ_EMPTY(&container->unsettled) || !TAILQ_EMPTY(&container->stranded)) {
		segmap_answer(request, SEGMAP_STATUS_BUSY, "I/O that was lost there may still be done");
		return;
	}
	status = segmap_plane_unbind_slot(&g_segmap.plane, slot);
	if (status != SEGMAP_STATUS_OK) {
		segmap_answer(request, status, status == SEGMAP_STATUS_BUSY ? "the slot is in use" :
										"the slot is not bound");
		return;
	}
	container->bound = false;
	atomic_fetch_add(&container->life, 1);
	segmap_container_lose(container);
	free(container->origin);
	container->origin = NULL;
	segmap_answer(request, SEGMAP_STATUS_OK, "");
}
