/* SPDX-License-Identifier: BSD-3-Clause
 *
 * JSON-RPC methods about virtual disks: identity and inspection only; what a table holds comes over the socket. The
 * names, parameters, results and error codes are those of the embedded target.
 */
#include "vbdev_segmap_socket.h"

#include "spdk/jsonrpc.h"
#include "spdk/rpc.h"
#include "spdk/string.h"
#include "spdk/util.h"

#define ENTRIES_MAX 65536u
#define ENTRIES_DEFAULT 1024u
#define SEGMENT_SIZE_DEFAULT (1u << 20)
#define BLOCK_SIZE_DEFAULT 512u

static void
fail(struct spdk_jsonrpc_request *request, int rc, const char *detail)
{
	spdk_jsonrpc_send_error_response(request, rc, detail[0] != '\0' ? detail : spdk_strerror(-rc));
}

static bool
decode(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params,
       const struct spdk_json_object_decoder *decoders, size_t count, void *out)
{
	if (spdk_json_decode_object(params, decoders, count, out) == 0) {
		return true;
	}
	spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INTERNAL_ERROR, "spdk_json_decode_object failed");
	return false;
}

/* The disk that a method names; NULL if the request has been answered. */
static struct segmap_disk *
find_disk(struct spdk_jsonrpc_request *request, const char *name)
{
	struct segmap_disk *disk = segmap_disk_find(name);

	if (disk == NULL) {
		fail(request, -ENODEV, "");
	}
	return disk;
}

/* ---- bdev_segmap_create ---- */

static int
decode_slots(const struct spdk_json_val *value, void *out)
{
	struct segmap_slots *slots = out;
	uint16_t numbers[SEGMAP_SLOTS];
	size_t count;

	if (spdk_json_decode_array(value, spdk_json_decode_uint16, numbers, SEGMAP_SLOTS, &count, sizeof(numbers[0])) != 0) {
		return -1;
	}
	for (size_t i = 0; i < count; i++) {
		if (numbers[i] >= SEGMAP_SLOTS) {
			return -1;
		}
		segmap_slots_add(slots, numbers[i]);
	}
	return 0;
}

struct create_params {
	char *name;
	struct segmap_disk_opts opts;
};

static const struct spdk_json_object_decoder create_decoders[] = {
	{ "name", offsetof(struct create_params, name), spdk_json_decode_string, false },
	{ "table", offsetof(struct create_params, opts.table), spdk_json_decode_uint64, false },
	{ "segment_count", offsetof(struct create_params, opts.geometry.segment_count), spdk_json_decode_uint64, false },
	{ "segment_size", offsetof(struct create_params, opts.geometry.segment_size), spdk_json_decode_uint32, true },
	{ "block_size", offsetof(struct create_params, opts.geometry.block_size), spdk_json_decode_uint32, true },
	{ "uuid", offsetof(struct create_params, opts.uuid), spdk_json_decode_uuid, true },
	{ "slots", offsetof(struct create_params, opts.slots), decode_slots, true },
	{ "read_only", offsetof(struct create_params, opts.geometry.read_only), spdk_json_decode_bool, true },
	{ "reclaim", offsetof(struct create_params, opts.geometry.reclaim), spdk_json_decode_bool, true },
};

static void
rpc_create(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct create_params req = {
		.opts.geometry = { .segment_size = SEGMENT_SIZE_DEFAULT, .block_size = BLOCK_SIZE_DEFAULT, .reclaim = true },
	};
	struct spdk_json_write_ctx *w;
	char detail[SEGMAP_DETAIL_BYTES];
	int rc;

	if (decode(request, params, create_decoders, SPDK_COUNTOF(create_decoders), &req)) {
		req.opts.name = req.name;
		rc = segmap_disk_create(&req.opts, detail);
		if (rc == 0) {
			w = spdk_jsonrpc_begin_result(request);
			spdk_json_write_string(w, req.name);
			spdk_jsonrpc_end_result(request, w);
		} else {
			fail(request, rc, detail);
		}
	}
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_create", rpc_create, SPDK_RPC_RUNTIME)

/* ---- bdev_segmap_delete ---- */

struct name_params {
	char *name;
};

static const struct spdk_json_object_decoder name_decoders[] = {
	{ "name", offsetof(struct name_params, name), spdk_json_decode_string, false },
};

static const struct spdk_json_object_decoder optional_name_decoders[] = {
	{ "name", offsetof(struct name_params, name), spdk_json_decode_string, true },
};

static void
deleted(void *ctx, int rc)
{
	if (rc == 0) {
		spdk_jsonrpc_send_bool_response(ctx, true);
	} else {
		fail(ctx, rc, "");
	}
}

static void
rpc_delete(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct name_params req = { NULL };
	struct segmap_disk *disk;

	if (decode(request, params, name_decoders, SPDK_COUNTOF(name_decoders), &req)) {
		disk = find_disk(request, req.name);
		if (disk != NULL) {
			segmap_disk_delete(disk, deleted, request);
		}
	}
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_delete", rpc_delete, SPDK_RPC_RUNTIME)

/* ---- bdev_segmap_get ---- */

void
segmap_disk_write_info(struct segmap_disk *disk, struct spdk_json_write_ctx *w)
{
	const struct segmap_engine *engine = &disk->engine;

	spdk_json_write_named_uint64(w, "table", engine->table_id);
	spdk_json_write_named_uint64(w, "segment_count", engine->geometry.segment_count);
	spdk_json_write_named_uint32(w, "segment_size", engine->geometry.segment_size);
	spdk_json_write_named_uint32(w, "block_size", engine->geometry.block_size);
	spdk_json_write_named_bool(w, "read_only", engine->geometry.read_only);
	spdk_json_write_named_bool(w, "reclaim", engine->geometry.reclaim);
	spdk_json_write_named_array_begin(w, "slots");
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		if (segmap_slots_have(&engine->slots, slot)) {
			spdk_json_write_uint32(w, slot);
		}
	}
	spdk_json_write_array_end(w);
	spdk_json_write_named_uint64(w, "sequence", engine->sequence);
	spdk_json_write_named_bool(w, "present", engine->present);
	spdk_json_write_named_bool(w, "suspended", engine->suspended);
}

static void
write_disk(struct segmap_disk *disk, struct spdk_json_write_ctx *w)
{
	spdk_json_write_object_begin(w);
	spdk_json_write_named_string(w, "name", disk->bdev.name);
	spdk_json_write_named_uuid(w, "uuid", &disk->bdev.uuid);
	segmap_disk_write_info(disk, w);
	spdk_json_write_object_end(w);
}

/* Parameters may be left out altogether. */
static bool
decode_optional_name(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params, struct name_params *req)
{
	return params == NULL ||
	       decode(request, params, optional_name_decoders, SPDK_COUNTOF(optional_name_decoders), req);
}

static void
rpc_get(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct name_params req = { NULL };
	struct spdk_json_write_ctx *w;
	struct segmap_disk *disk;

	if (!decode_optional_name(request, params, &req) ||
	    (req.name != NULL && find_disk(request, req.name) == NULL)) {
		free(req.name);
		return;
	}
	w = spdk_jsonrpc_begin_result(request);
	spdk_json_write_array_begin(w);
	TAILQ_FOREACH(disk, &g_segmap.disks, link) {
		if (req.name == NULL || strcmp(req.name, disk->bdev.name) == 0) {
			write_disk(disk, w);
		}
	}
	spdk_json_write_array_end(w);
	spdk_jsonrpc_end_result(request, w);
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_get", rpc_get, SPDK_RPC_RUNTIME)

/* ---- bdev_segmap_get_entries ---- */

struct entries_params {
	char *name;
	uint64_t start;
	uint32_t count;
};

static const struct spdk_json_object_decoder entries_decoders[] = {
	{ "name", offsetof(struct entries_params, name), spdk_json_decode_string, false },
	{ "start", offsetof(struct entries_params, start), spdk_json_decode_uint64, true },
	{ "count", offsetof(struct entries_params, count), spdk_json_decode_uint32, true },
};

static void
send_entries(struct spdk_jsonrpc_request *request, const struct segmap_disk *disk, uint64_t start, uint64_t count)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);

	spdk_json_write_object_begin(w);
	spdk_json_write_named_string(w, "name", disk->bdev.name);
	spdk_json_write_named_uint64(w, "start", start);
	spdk_json_write_named_array_begin(w, "entries");
	for (uint64_t i = 0; i < count; i++) {
		spdk_json_write_uint64(w, segmap_table_get(&disk->engine.table, start + i));
	}
	spdk_json_write_array_end(w);
	spdk_json_write_object_end(w);
	spdk_jsonrpc_end_result(request, w);
}

static void
rpc_get_entries(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct entries_params req = { .count = ENTRIES_DEFAULT };
	struct segmap_disk *disk;
	uint64_t segments;

	if (decode(request, params, entries_decoders, SPDK_COUNTOF(entries_decoders), &req)) {
		disk = find_disk(request, req.name);
		segments = disk != NULL ? segmap_table_count(&disk->engine.table) : 0;
		if (disk != NULL && (req.count == 0 || req.count > ENTRIES_MAX || req.start >= segments)) {
			fail(request, -ERANGE, "");
		} else if (disk != NULL) {
			send_entries(request, disk, req.start, spdk_min(req.count, segments - req.start));
		}
	}
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_get_entries", rpc_get_entries, SPDK_RPC_RUNTIME)

/* ---- bdev_segmap_get_stats: the disks are counted one after the other, by name ---- */

struct stats {
	struct spdk_jsonrpc_request *request;
	struct spdk_json_write_ctx *w;
	char **names;
	size_t count;
	size_t next;
};

static void count_next(struct stats *stats);

static void
write_entries(const struct segmap_disk *disk, struct spdk_json_write_ctx *w)
{
	uint64_t counts[SEGMAP_STATE_NONE + 1];

	segmap_table_counts(&disk->engine.table, counts);
	spdk_json_write_named_object_begin(w, "entries");
	spdk_json_write_named_uint64(w, "invalid", counts[SEGMAP_STATE_INVALID]);
	spdk_json_write_named_uint64(w, "no_write", counts[SEGMAP_STATE_NO_WRITE]);
	spdk_json_write_named_uint64(w, "zero", counts[SEGMAP_STATE_ZERO]);
	spdk_json_write_named_uint64(w, "error", counts[SEGMAP_STATE_ERROR]);
	spdk_json_write_named_uint64(w, "mapped", counts[SEGMAP_STATE_NONE]);
	spdk_json_write_object_end(w);
}

static void
find_oldest(void *ctx, const struct segmap_part *part)
{
	uint64_t *since_ns = ctx;

	*since_ns = spdk_min(*since_ns, part->parked_ns);
}

/* How long the part has waited that has waited longest; 0 if none waits. */
static uint64_t
oldest_parked_ns(const struct segmap_engine *engine)
{
	uint64_t now_ns = segmap_now_ns(), since_ns = now_ns;

	segmap_engine_each_parked(engine, find_oldest, &since_ns);
	return now_ns - since_ns;
}

static void
write_latency(struct spdk_json_write_ctx *w, const char *name, const uint64_t *counts)
{
	spdk_json_write_named_array_begin(w, name);
	for (uint32_t i = 0; i < SEGMAP_LATENCY_BUCKETS; i++) {
		spdk_json_write_uint64(w, counts[i]);
	}
	spdk_json_write_array_end(w);
}

static void
write_stats(const struct segmap_disk *disk, const struct segmap_sums *sums, struct spdk_json_write_ctx *w)
{
	const struct segmap_engine *engine = &disk->engine;
	const struct segmap_counters *sum = &sums->parts;

	spdk_json_write_object_begin(w);
	spdk_json_write_named_string(w, "name", disk->bdev.name);
	spdk_json_write_named_uint64(w, "table", engine->table_id);
	spdk_json_write_named_uint64(w, "sequence", engine->sequence);
	spdk_json_write_named_uint64(w, "forwarded", sum->forwarded);
	spdk_json_write_named_uint64(w, "zero_reads", sum->zero_reads);
	spdk_json_write_named_uint64(w, "faults", sum->faults);
	spdk_json_write_named_uint64(w, "failed", sum->failed);
	spdk_json_write_named_uint64(w, "dropped", sum->dropped);
	spdk_json_write_named_uint32(w, "parked", engine->parked);
	spdk_json_write_named_uint32(w, "outstanding_faults", engine->faults.count);
	spdk_json_write_named_uint64(w, "oldest_parked_ns", oldest_parked_ns(engine));
	spdk_json_write_named_uint32(w, "unsettled", atomic_load(&disk->unsettled));
	write_latency(w, "read_latency", sums->latency[0]);
	write_latency(w, "write_latency", sums->latency[1]);
	write_entries(disk, w);
	spdk_json_write_object_end(w);
}

static void
counted(void *ctx, const struct segmap_sums *sums)
{
	struct stats *stats = ctx;
	struct segmap_disk *disk = segmap_disk_find(stats->names[stats->next - 1]);

	if (disk != NULL) {
		write_stats(disk, sums, stats->w);
	}
	count_next(stats);
}

static void
end_stats(struct stats *stats)
{
	spdk_json_write_array_end(stats->w);
	spdk_json_write_object_end(stats->w);
	spdk_jsonrpc_end_result(stats->request, stats->w);
	for (size_t i = 0; i < stats->count; i++) {
		free(stats->names[i]);
	}
	free(stats->names);
	free(stats);
}

static void
count_next(struct stats *stats)
{
	while (stats->next < stats->count) {
		struct segmap_disk *disk = segmap_disk_find(stats->names[stats->next++]);

		if (disk != NULL) {
			segmap_disk_count(disk, counted, stats);
			return;
		}
	}
	end_stats(stats);
}

static void
begin_stats(struct stats *stats)
{
	const struct segmap_plane *plane = &g_segmap.plane;
	uint64_t now_ns = segmap_now_ns();
	bool valid = segmap_lease_covers(&plane->lease, now_ns);

	stats->w = spdk_jsonrpc_begin_result(stats->request);
	spdk_json_write_object_begin(stats->w);
	spdk_json_write_named_uint64(stats->w, "term", plane->term);
	spdk_json_write_named_uint64(stats->w, "incarnation", plane->incarnation);
	spdk_json_write_named_uint64(stats->w, "epoch", segmap_lease_epoch(&plane->lease));
	spdk_json_write_named_bool(stats->w, "lease_valid", valid);
	spdk_json_write_named_uint64(stats->w, "lease_left_ns", valid ? plane->lease.deadline_ns - now_ns : 0);
	spdk_json_write_named_bool(stats->w, "connected", segmap_peer_admitted());
	spdk_json_write_named_array_begin(stats->w, "bdevs");
}

/* The names of the disks to be counted: `only`, or all. False if out of memory. */
static bool
list_names(struct stats *stats, const char *only)
{
	struct segmap_disk *disk;

	stats->names = calloc(g_segmap.plane.table_count + 1, sizeof(*stats->names));
	if (stats->names == NULL) {
		return false;
	}
	TAILQ_FOREACH(disk, &g_segmap.disks, link) {
		if (only == NULL || strcmp(only, disk->bdev.name) == 0) {
			stats->names[stats->count] = strdup(disk->bdev.name);
			if (stats->names[stats->count++] == NULL) {
				return false;
			}
		}
	}
	return true;
}

static void
rpc_get_stats(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct name_params req = { NULL };
	struct stats *stats;

	if (!decode_optional_name(request, params, &req) ||
	    (req.name != NULL && find_disk(request, req.name) == NULL)) {
		free(req.name);
		return;
	}
	stats = calloc(1, sizeof(*stats));
	if (stats == NULL || !list_names(stats, req.name)) {
		fail(request, -ENOMEM, "");
		for (size_t i = 0; stats != NULL && i < stats->count; i++) {
			free(stats->names[i]);
		}
		if (stats != NULL) {
			free(stats->names);
		}
		free(stats);
	} else {
		stats->request = request;
		begin_stats(stats);
		count_next(stats);
	}
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_get_stats", rpc_get_stats, SPDK_RPC_RUNTIME)

/* ---- bdev_segmap_resize ---- */

struct resize_params {
	char *name;
	uint64_t segment_count;
};

static const struct spdk_json_object_decoder resize_decoders[] = {
	{ "name", offsetof(struct resize_params, name), spdk_json_decode_string, false },
	{ "segment_count", offsetof(struct resize_params, segment_count), spdk_json_decode_uint64, false },
};

static void
rpc_resize(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct resize_params req = { NULL, 0 };
	struct segmap_disk *disk;
	int rc;

	if (decode(request, params, resize_decoders, SPDK_COUNTOF(resize_decoders), &req)) {
		disk = find_disk(request, req.name);
		rc = disk != NULL ? segmap_disk_resize(disk, req.segment_count) : 0;
		if (rc != 0) {
			fail(request, rc, "");
		} else if (disk != NULL) {
			spdk_jsonrpc_send_bool_response(request, true);
		}
	}
	free(req.name);
}
SPDK_RPC_REGISTER("bdev_segmap_resize", rpc_resize, SPDK_RPC_RUNTIME)
