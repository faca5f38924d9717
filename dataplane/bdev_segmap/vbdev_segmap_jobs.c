/* SPDX-License-Identifier: BSD-3-Clause
 *
 * COPY_SEGMENTS and ZERO_SEGMENTS: leased work on containers, one job at a time, flushed before it is answered.
 *
 * The lease is looked at before each container I/O, and once more at the end: a job that outlived its lease never
 * reports success. A destination that may have lost unflushed writes meanwhile fails the job.
 */
#include "vbdev_segmap_socket.h"

#include "spdk/env.h"
#include "spdk/util.h"

#define WAITING_MAX 64u
#define COPY_BYTES (1u << 20)
#define ZERO_BYTES (16u << 20)

/* One piece of a job: copy a segment, or zero a run of segments. */
struct piece {
	uint64_t source; /* an entry; 0: zeroes */
	uint64_t destination;
	uint64_t count; /* segments */
};

struct job {
	struct segmap_job core;
	struct segmap_frame *request;
	struct piece *pieces;
	uint32_t piece_count;
	uint32_t current; /* the piece under way; beyond the last one, its slots are flushed */
	uint64_t done_bytes; /* of it */
	uint32_t flushed; /* slots below this one */
	bool begun; /* some I/O has */
	struct segmap_slots written;
	uint64_t losses[SEGMAP_SLOTS];
	uint8_t *buffer;
	struct segmap_path *path; /* of the I/O under way */
	void (*next)(struct job *job);
	TAILQ_ENTRY(job) link;
};

static TAILQ_HEAD(, job) g_waiting = TAILQ_HEAD_INITIALIZER(g_waiting);
static struct job *g_current;
static uint32_t g_jobs;
static bool g_starting;

static void advance(struct job *job);
static void start_next(void *ctx);

static void
free_job(struct job *job)
{
	spdk_dma_free(job->buffer);
	free(job->pieces);
	free(job);
	g_jobs--;
}

/* The next one begins at the next turn of the loop. */
static void
start_soon(void)
{
	static struct segmap_message message;

	if (!g_starting) {
		g_starting = true;
		segmap_tell_owner(&message, start_next, NULL);
	}
}

/* Once I/O has begun, only these two say so: with any other status no segment was touched. */
static void
end(struct job *job, enum segmap_status status, const char *detail)
{
	if (job->begun && status != SEGMAP_STATUS_OK && status != SEGMAP_STATUS_LEASE_EXPIRED) {
		status = SEGMAP_STATUS_IO_ERROR;
	}
	status = segmap_plane_end_job(&g_segmap.plane, &job->core, status, segmap_now_ns());
	segmap_answer(job->request, status, detail);
	g_current = NULL;
	free_job(job);
	start_soon();
}

static void
io_done(struct spdk_bdev_io *base_io, bool success, void *ctx)
{
	struct job *job = ctx;

	spdk_bdev_free_io(base_io);
	segmap_path_release(job->path);
	if (success) {
		job->next(job);
	} else {
		end(job, SEGMAP_STATUS_IO_ERROR, "an I/O of a container failed");
	}
}

/* The path for the next I/O, held; NULL if the job has ended. */
static struct segmap_path *
begin_io(struct job *job, uint32_t slot, void (*next)(struct job *job))
{
	if (!segmap_plane_may_continue(&g_segmap.plane, &job->core, segmap_now_ns())) {
		end(job, SEGMAP_STATUS_LEASE_EXPIRED, "the lease has expired");
		return NULL;
	}
	job->path = segmap_path_find(segmap_owner_paths(), slot);
	if (job->path == NULL) {
		end(job, SEGMAP_STATUS_IO_ERROR, "a container has lost its bdev");
		return NULL;
	}
	segmap_path_hold(job->path);
	job->next = next;
	return job->path;
}

static void
begun(struct job *job, int rc)
{
	if (rc == 0) {
		job->begun = true;
	} else {
		segmap_path_release(job->path);
		end(job, rc == -ENOMEM ? SEGMAP_STATUS_BUSY : SEGMAP_STATUS_IO_ERROR,
		    "an I/O of a container could not be begun");
	}
}

static uint64_t
segment_size_of(uint64_t entry)
{
	return g_segmap.containers[segmap_slot_of(entry)].label.segment_size;
}

static uint64_t
byte_of(uint64_t entry)
{
	return segmap_segment_of(entry) * segment_size_of(entry);
}

static const struct piece *
piece_of(const struct job *job)
{
	return &job->pieces[job->current];
}

/* How many bytes of the piece the next I/O takes. */
static uint64_t
next_bytes(const struct job *job)
{
	const struct piece *piece = piece_of(job);
	uint64_t left = piece->count * segment_size_of(piece->destination) - job->done_bytes;

	return spdk_min(left, piece->source != 0 ? COPY_BYTES : ZERO_BYTES);
}

static void
written(struct job *job)
{
	const struct piece *piece = piece_of(job);

	job->done_bytes += next_bytes(job);
	if (job->done_bytes == piece->count * segment_size_of(piece->destination)) {
		job->current++;
		job->done_bytes = 0;
	}
	advance(job);
}

static void
copy_write(struct job *job)
{
	uint64_t entry = piece_of(job)->destination;
	struct segmap_path *path = begin_io(job, segmap_slot_of(entry), written);

	if (path != NULL) {
		begun(job, spdk_bdev_write(path->base->desc, path->channel, job->buffer, byte_of(entry) + job->done_bytes,
					   next_bytes(job), io_done, job));
	}
}

static void
copy_read(struct job *job)
{
	uint64_t entry = piece_of(job)->source;
	struct segmap_path *path = begin_io(job, segmap_slot_of(entry), copy_write);

	if (path != NULL) {
		begun(job, spdk_bdev_read(path->base->desc, path->channel, job->buffer, byte_of(entry) + job->done_bytes,
					  next_bytes(job), io_done, job));
	}
}

static void
zero(struct job *job)
{
	uint64_t entry = piece_of(job)->destination;
	struct segmap_path *path = begin_io(job, segmap_slot_of(entry), written);

	if (path != NULL) {
		begun(job, spdk_bdev_write_zeroes(path->base->desc, path->channel, byte_of(entry) + job->done_bytes,
						  next_bytes(job), io_done, job));
	}
}

static void flush(struct job *job);

/* What was written before may have been lost until its flush ended. */
static void
slot_flushed(struct job *job)
{
	uint32_t slot = job->flushed++;

	if (g_segmap.containers[slot].losses != job->losses[slot]) {
		end(job, SEGMAP_STATUS_IO_ERROR, "a container may have lost writes");
	} else {
		flush(job);
	}
}

/* Flush the next written slot, or end the job. */
static void
flush(struct job *job)
{
	struct segmap_path *path;

	while (job->flushed < SEGMAP_SLOTS && !segmap_slots_have(&job->written, job->flushed)) {
		job->flushed++;
	}
	if (job->flushed == SEGMAP_SLOTS) {
		end(job, SEGMAP_STATUS_OK, "");
		return;
	}
	path = begin_io(job, job->flushed, slot_flushed);
	if (path == NULL) {
		return;
	}
	if (!path->base->flushes) {
		segmap_path_release(path);
		slot_flushed(job);
		return;
	}
	begun(job, spdk_bdev_flush_blocks(path->base->desc, path->channel, 0, spdk_bdev_get_num_blocks(path->base->bdev),
					  io_done, job));
}

static void
advance(struct job *job)
{
	if (job->current == job->piece_count) {
		flush(job);
	} else if (piece_of(job)->source != 0) {
		copy_read(job);
	} else {
		zero(job);
	}
}

/* NULL, or what is wrong with a location of a piece. */
static const char *
location_fault(uint64_t entry, uint64_t count)
{
	const struct segmap_container *container = &g_segmap.containers[segmap_slot_of(entry)];
	uint64_t segment = segmap_segment_of(entry), segments = container->label.segment_count;

	if (segment == 0 || count == 0 || segment >= segments || count > segments - segment) {
		return "segments beyond a container's";
	}
	return NULL;
}

static enum segmap_status
check_pieces(const struct job *job, const char **detail)
{
	for (uint32_t i = 0; i < job->piece_count; i++) {
		const struct piece *piece = &job->pieces[i];

		*detail = location_fault(piece->destination, piece->count);
		if (*detail == NULL && piece->source != 0) {
			*detail = location_fault(piece->source, 1);
		}
		if (*detail != NULL) {
			return SEGMAP_STATUS_OUT_OF_RANGE;
		}
		if (piece->source != 0 && segment_size_of(piece->source) != segment_size_of(piece->destination)) {
			*detail = "the segments differ in size";
			return SEGMAP_STATUS_BAD_MESSAGE;
		}
	}
	*detail = "";
	return SEGMAP_STATUS_OK;
}

static void
start(struct job *job)
{
	struct segmap_stamp stamp = segmap_frame_stamp(job->request);
	struct segmap_slots slots = { { 0 } };
	enum segmap_status status;
	const char *detail;

	for (uint32_t i = 0; i < job->piece_count; i++) {
		segmap_slots_add(&slots, segmap_slot_of(job->pieces[i].destination));
		segmap_slots_add(&job->written, segmap_slot_of(job->pieces[i].destination));
		if (job->pieces[i].source != 0) {
			segmap_slots_add(&slots, segmap_slot_of(job->pieces[i].source));
		}
	}
	status = segmap_plane_begin_job(&g_segmap.plane, &stamp, &job->core, &slots, segmap_now_ns());
	if (status != SEGMAP_STATUS_OK) {
		segmap_answer(job->request, status, "");
		free_job(job);
		start_soon();
		return;
	}
	g_current = job;
	for (uint32_t slot = 0; slot < SEGMAP_SLOTS; slot++) {
		job->losses[slot] = g_segmap.containers[slot].losses;
	}
	status = check_pieces(job, &detail);
	if (status != SEGMAP_STATUS_OK) {
		end(job, status, detail);
		return;
	}
	advance(job);
}

static void
start_next(void *ctx)
{
	struct job *job = TAILQ_FIRST(&g_waiting);

	(void)ctx;
	g_starting = false;
	if (g_current == NULL && job != NULL) {
		TAILQ_REMOVE(&g_waiting, job, link);
		start(job);
	}
}

/* A job of `count` pieces, NULL if the request has been answered already. */
static struct job *
new_job(struct segmap_frame *request, uint32_t count)
{
	struct job *job;

	if (g_jobs >= WAITING_MAX) {
		segmap_answer(request, SEGMAP_STATUS_BUSY, "too many jobs wait already");
		return NULL;
	}
	job = calloc(1, sizeof(*job));
	if (job == NULL) {
		segmap_answer(request, SEGMAP_STATUS_LIMIT, "out of memory");
		return NULL;
	}
	g_jobs++;
	job->request = request;
	job->piece_count = count;
	job->pieces = calloc(count, sizeof(*job->pieces));
	job->buffer = spdk_dma_malloc(COPY_BYTES, SEGMAP_LABEL_BYTES, NULL);
	if ((count > 0 && job->pieces == NULL) || job->buffer == NULL) {
		segmap_answer(request, SEGMAP_STATUS_LIMIT, "out of memory");
		free_job(job);
		return NULL;
	}
	return job;
}

static void
enqueue(struct job *job)
{
	for (uint32_t i = 0; i < job->piece_count; i++) {
		const struct piece *piece = &job->pieces[i];

		if (!segmap_has_location(piece->destination) ||
		    (piece->source != 0 && !segmap_has_location(piece->source))) {
			segmap_answer(job->request, SEGMAP_STATUS_BAD_MESSAGE, "an entry names no location");
			free_job(job);
			return;
		}
	}
	TAILQ_INSERT_TAIL(&g_waiting, job, link);
	start_soon();
}

void
segmap_copy_segments(struct segmap_frame *request, const struct segmap_wire_segment_copy *copies, uint32_t count)
{
	struct job *job = new_job(request, count);

	if (job == NULL) {
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		/* A source that names no location must not look like zeroes. */
		uint64_t source = copies[i].source != 0 ? copies[i].source : SEGMAP_ZERO_ENTRY;

		job->pieces[i] = (struct piece) { source, copies[i].destination, 1 };
	}
	enqueue(job);
}

void
segmap_zero_segments(struct segmap_frame *request, const struct segmap_wire_segment_run *runs, uint32_t count)
{
	struct job *job = new_job(request, count);

	if (job == NULL) {
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		job->pieces[i] = (struct piece) { 0, runs[i].start, runs[i].count };
	}
	enqueue(job);
}
