/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connections with containers that are NVMe namespaces: when one is lost, and what is there when it is back.
 *
 * SPDK's NVMe bdevs reconnect by themselves and tell nobody, but they do it through two functions of SPDK's NVMe driver.
 * Defined here, in the program or in a preloaded library, these come first; they do what they are for, and between:
 *
 * - A connection that goes is a loss: whatever its container had not flushed may be gone (design: a flush that could
 *   have lost something fails).
 * - A connection that is back is an attach: the labels of its containers are read over a queue pair of our own before
 *   the driver's users get theirs, so that no I/O meets another container (design: containers are who they say). A label
 *   that differs takes the base from its container, and the connection stays down, as bdev_nvme_get_controllers shows.
 *   A good one settles what was sent before.
 *
 * All of this is on the owner's thread, where SPDK's NVMe bdevs look after their controllers.
 */
#include <dlfcn.h>

#include "vbdev_segmap.h"

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/nvme.h"
#include "spdk/string.h"

#define EXPORTED __attribute__((visibility("default")))
#define VERIFY_TIMEOUT_S 5u

/* A NVMe controller that bases are namespaces of. */
struct segmap_controller {
	struct spdk_nvme_ctrlr *ctrlr;
	TAILQ_HEAD(, segmap_base) bases;
	uint64_t disconnects;
	bool down; /* since a disconnection, until its containers are verified */
	bool refused; /* it leads to something else than it did */
	bool verifying; /* it is connected, and its users wait */
	uint64_t deadline_ticks;
	struct spdk_nvme_qpair *qpair;
	uint8_t *buffer;
	struct segmap_base *reading; /* whose label is read now */
	struct segmap_base *next; /* whose comes then */
	bool read_pending; /* until it has been judged */
	bool read_done;
	bool read_failed;
	TAILQ_ENTRY(segmap_controller) link;
};

static TAILQ_HEAD(, segmap_controller) g_controllers = TAILQ_HEAD_INITIALIZER(g_controllers);

static struct segmap_controller *
find(const struct spdk_nvme_ctrlr *ctrlr)
{
	struct segmap_controller *controller;

	if (spdk_get_thread() != g_segmap.inbox.thread) {
		return NULL;
	}
	TAILQ_FOREACH(controller, &g_controllers, link) {
		if (controller->ctrlr == ctrlr) {
			return controller;
		}
	}
	return NULL;
}

static struct segmap_controller *
find_or_make(struct spdk_nvme_ctrlr *ctrlr)
{
	struct segmap_controller *controller = find(ctrlr);

	if (controller != NULL) {
		return controller;
	}
	controller = calloc(1, sizeof(*controller));
	if (controller == NULL) {
		return NULL;
	}
	controller->buffer = spdk_dma_zmalloc(SEGMAP_LABEL_BYTES, SEGMAP_LABEL_BYTES, NULL);
	if (controller->buffer == NULL) {
		free(controller);
		return NULL;
	}
	controller->ctrlr = ctrlr;
	TAILQ_INIT(&controller->bases);
	TAILQ_INSERT_TAIL(&g_controllers, controller, link);
	return controller;
}

/* One that has refused is kept: its bdev may be there for long, and must not look usable. */
static void
release(struct segmap_controller *controller)
{
	if (!TAILQ_EMPTY(&controller->bases) || controller->verifying || controller->refused) {
		return;
	}
	TAILQ_REMOVE(&g_controllers, controller, link);
	spdk_dma_free(controller->buffer);
	free(controller);
}

static struct spdk_nvme_ns *
namespace_of(const struct segmap_base *base)
{
	return strcmp(spdk_bdev_get_module_name(base->bdev), "nvme") == 0 ? spdk_bdev_get_module_ctx(base->desc) : NULL;
}

/* ---- bases ---- */

int
segmap_base_connect(struct segmap_base *base)
{
	struct spdk_nvme_ns *ns = namespace_of(base);

	if (ns == NULL) {
		return 0;
	}
	base->controller = find_or_make(spdk_nvme_ns_get_ctrlr(ns));
	if (base->controller == NULL) {
		return -ENOMEM;
	}
	base->controller->refused = false;
	if (TAILQ_EMPTY(&base->controller->bases)) {
		base->controller->down = false; /* it may be another one by now, at the same address */
	}
	base->nsid = spdk_nvme_ns_get_id(ns);
	TAILQ_INSERT_TAIL(&base->controller->bases, base, link);
	return 0;
}

void
segmap_base_disconnect(struct segmap_base *base)
{
	struct segmap_controller *controller = base->controller;

	if (controller == NULL) {
		return;
	}
	if (controller->next == base) {
		controller->next = TAILQ_NEXT(base, link);
	}
	if (controller->reading == base) {
		controller->reading = NULL;
	}
	TAILQ_REMOVE(&controller->bases, base, link);
	base->controller = NULL;
	release(controller);
}

uint64_t
segmap_base_disconnects(const struct segmap_base *base)
{
	return base->controller != NULL ? base->controller->disconnects : 0;
}

void
segmap_base_label(struct segmap_base *base, const struct segmap_label *label)
{
	base->label = *label;
	base->labelled = true;
}

char *
segmap_base_origin(const struct segmap_base *base)
{
	const struct spdk_nvme_transport_id *place;
	struct spdk_nvme_ctrlr *ctrlr;

	if (base->controller == NULL) {
		return NULL;
	}
	ctrlr = base->controller->ctrlr;
	place = spdk_nvme_ctrlr_get_transport_id(ctrlr);
	return spdk_sprintf_alloc("%s %s %s %s %s %u", place->trstring, place->traddr, place->trsvcid, place->subnqn,
				  spdk_nvme_ctrlr_get_opts(ctrlr)->hostnqn, base->nsid);
}

/* ---- a connection goes ---- */

static struct segmap_container *
container_of(const struct segmap_base *base)
{
	struct segmap_container *container = &g_segmap.containers[base->slot];

	return atomic_load(&container->base) == base ? container : NULL;
}

static void
end_verification(struct segmap_controller *controller)
{
	struct spdk_nvme_qpair *qpair = controller->qpair;

	controller->verifying = false;
	controller->qpair = NULL;
	if (qpair != NULL) {
		spdk_nvme_ctrlr_free_io_qpair(qpair);
	}
	controller->reading = NULL;
	controller->read_pending = false;
}

static void
connection_lost(struct segmap_controller *controller)
{
	struct segmap_container *container;
	struct segmap_base *base;

	end_verification(controller);
	controller->disconnects++;
	if (controller->down) {
		return;
	}
	controller->down = true;
	TAILQ_FOREACH(base, &controller->bases, link) {
		container = container_of(base);
		if (container != NULL) {
			SPDK_NOTICELOG("container slot %u: the connection is lost\n", base->slot);
			container->losses += spdk_bdev_has_write_cache(base->bdev);
		}
	}
}

/* ---- a connection is back ---- */

static void
label_read(void *ctx, const struct spdk_nvme_cpl *completion)
{
	struct segmap_controller *controller = ctx;

	controller->read_done = true;
	controller->read_failed = spdk_nvme_cpl_is_error(completion);
}

static int
begin_verification(struct segmap_controller *controller)
{
	struct spdk_nvme_io_qpair_opts opts;

	controller->verifying = true;
	controller->deadline_ticks = spdk_get_ticks() + VERIFY_TIMEOUT_S * spdk_get_ticks_hz();
	controller->next = TAILQ_FIRST(&controller->bases);
	controller->reading = NULL;
	spdk_nvme_ctrlr_get_default_io_qpair_opts(controller->ctrlr, &opts, sizeof(opts));
	opts.async_mode = true;
	controller->qpair = spdk_nvme_ctrlr_alloc_io_qpair(controller->ctrlr, &opts, sizeof(opts));
	return controller->qpair != NULL ? 0 : -EIO;
}

/* The next base whose label has to be what it was. A namespace that is gone is the NVMe bdev's to find out. */
static struct segmap_base *
next_base(struct segmap_controller *controller)
{
	struct segmap_base *base;

	while ((base = controller->next) != NULL) {
		controller->next = TAILQ_NEXT(base, link);
		if (base->labelled && spdk_nvme_ctrlr_is_active_ns(controller->ctrlr, base->nsid)) {
			return base;
		}
	}
	return NULL;
}

static int
begin_read(struct segmap_controller *controller, struct segmap_base *base)
{
	struct spdk_nvme_ns *ns = spdk_nvme_ctrlr_get_ns(controller->ctrlr, base->nsid);
	uint32_t block = spdk_nvme_ns_get_sector_size(ns);

	controller->reading = base;
	controller->read_pending = true;
	controller->read_done = false;
	if (block == 0 || SEGMAP_LABEL_BYTES % block != 0) {
		controller->read_done = controller->read_failed = true;
		return 0;
	}
	return spdk_nvme_ns_cmd_read(ns, controller->qpair, controller->buffer, 0, SEGMAP_LABEL_BYTES / block, label_read,
				     controller, 0);
}

/* NULL, or why this is not what the base was. Another agent may have renewed the label meanwhile. */
static const char *
difference(const struct segmap_base *base, const uint8_t *data)
{
	struct segmap_label found;
	const char *why = segmap_label_decode(data, &found);

	if (why != NULL) {
		return why;
	}
	found.generation = base->label.generation;
	return segmap_label_verify(&base->label, &found);
}

static int
judge(struct segmap_controller *controller)
{
	struct segmap_base *base = controller->reading;
	struct segmap_container *container;
	const char *why;

	controller->reading = NULL;
	controller->read_pending = false;
	if (base == NULL) {
		return 0; /* it is gone meanwhile */
	}
	if (controller->read_failed) {
		return -EIO;
	}
	why = difference(base, controller->buffer);
	if (why == NULL) {
		return 0;
	}
	SPDK_ERRLOG("container slot %u: bdev %s has come back as something else: %s\n", base->slot,
		    spdk_bdev_get_name(base->bdev), why);
	controller->refused = true;
	container = container_of(base);
	if (container != NULL) {
		free(container->origin);
		container->origin = NULL;
		segmap_container_lose(container);
	}
	return -EIO;
}

/* 0: all are who they were; -EAGAIN: not known yet. */
static int
verify(struct segmap_controller *controller)
{
	struct segmap_base *base;
	int rc;

	if (controller->refused || spdk_nvme_ctrlr_is_failed(controller->ctrlr)) {
		return -EIO;
	}
	if (spdk_nvme_qpair_process_completions(controller->qpair, 0) < 0) {
		return -EIO;
	}
	if (spdk_get_ticks() >= controller->deadline_ticks) {
		return -ETIMEDOUT;
	}
	if (!spdk_nvme_qpair_is_connected(controller->qpair)) {
		return -EAGAIN;
	}
	if (controller->read_pending) {
		if (!controller->read_done) {
			return -EAGAIN;
		}
		rc = judge(controller);
		if (rc != 0) {
			return rc;
		}
	}
	base = next_base(controller);
	if (base == NULL) {
		return 0;
	}
	rc = begin_read(controller, base);
	return rc != 0 ? rc : -EAGAIN;
}

static void
connection_back(struct segmap_controller *controller)
{
	struct segmap_container *container;
	struct segmap_base *base;

	controller->down = false;
	TAILQ_FOREACH(base, &controller->bases, link) {
		container = container_of(base);
		if (container != NULL) {
			SPDK_NOTICELOG("container slot %u: connected again\n", base->slot);
			segmap_container_settle(container, false);
		}
	}
}

/* ---- in between SPDK's NVMe bdevs and its NVMe driver ---- */

/* The driver's own function. */
static void *
real(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	if (found == NULL) {
		SPDK_ERRLOG("this SPDK has no %s of its own\n", name);
		abort();
	}
	return found;
}

EXPORTED int
spdk_nvme_ctrlr_disconnect(struct spdk_nvme_ctrlr *ctrlr)
{
	static int (*disconnect)(struct spdk_nvme_ctrlr *ctrlr);
	struct segmap_controller *controller = find(ctrlr);

	if (disconnect == NULL) {
		disconnect = real(__func__);
	}
	if (controller != NULL) {
		connection_lost(controller);
	}
	return disconnect(ctrlr);
}

EXPORTED int
spdk_nvme_ctrlr_reconnect_poll_async(struct spdk_nvme_ctrlr *ctrlr)
{
	static int (*poll)(struct spdk_nvme_ctrlr *ctrlr);
	struct segmap_controller *controller = find(ctrlr);
	int rc = 0;

	if (poll == NULL) {
		poll = real(__func__);
	}
	if (controller == NULL || !controller->verifying) {
		rc = poll(ctrlr);
		if (rc != 0 || controller == NULL) {
			return rc;
		}
		rc = begin_verification(controller);
	}
	if (rc == 0) {
		rc = verify(controller);
	}
	if (rc == -EAGAIN) {
		return rc;
	}
	end_verification(controller);
	if (rc == 0) {
		connection_back(controller);
	}
	release(controller);
	return rc;
}
