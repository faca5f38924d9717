/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One virtual disk's table at a data plane, and the I/O that goes through it ([0024]-[0037]).
 *
 * The same rules as the reference engine in Python (mapping/engine.py), which it is compared with. Threads: a channel's
 * functions run on the channel's thread, take no lock, allocate nothing and decide what the entry lets through; whatever
 * else there is to do they leave to the owner (SEGMAP_STEP_ASK_OWNER). All other functions are the owner's, one thread
 * for the whole plane. What the owner's functions want done comes as calls of `struct segmap_effects`, in order. These
 * must not call back into the core.
 *
 * Invariants: a part begins when it joins a generation and its entry is loaded, in that order; parked parts have not
 * begun. While the lease does not cover now, nothing begins; a part begun before an expiry never succeeds after it. A
 * parked part is in exactly one place: a fault, the list of those without a lease, or the suspended list.
 */
#ifndef SEGMAP_ENGINE_H
#define SEGMAP_ENGINE_H

#include "entry.h"
#include "faults.h"
#include "generations.h"
#include "lease.h"
#include "table.h"

#define SEGMAP_PARKED_MAX 16384u
#define SEGMAP_SEGMENT_SIZE_MIN 4096u
#define SEGMAP_SEGMENT_SIZE_MAX (1u << 30)

struct segmap_plane;

/* What the owner's functions want done. `ctx` is the plane's. */
struct segmap_effects {
	/* Do the part on its container; it has begun. Report with segmap_engine_complete. */
	void (*forward)(void *ctx, struct segmap_part *part);
	/* End a read successfully with zeroes, without container I/O. */
	void (*return_zeroes)(void *ctx, struct segmap_part *part);
	/* End the part towards the host with part->status. */
	void (*complete)(void *ctx, struct segmap_part *part);
	/* Send a MAP_FAULT. The fault may be gone when the call has returned: copy what is needed. */
	void (*send_fault)(void *ctx, const struct segmap_fault *fault);
	/* Everything begun before the barrier has ended (OK), or did not in time (BARRIER_TIMEOUT). */
	void (*barrier_reached)(void *ctx, struct segmap_barrier *barrier, enum segmap_status status);
	/* The lease expired: all tables are wiped, and `epoch` has begun. */
	void (*epoch_began)(void *ctx, uint64_t epoch);
	/*
	 * Have every channel of the engine turned (segmap_channel_turn), each on its thread. True if that has been
	 * done; false if segmap_engine_drained will be called once it has.
	 */
	bool (*turn)(void *ctx, struct segmap_engine *engine);
	/* A deadline on the channels' clock, as early as that clock's error needs; never 0. */
	uint64_t (*ticks_at)(void *ctx, uint64_t deadline_ns);
};

/* Shape of a virtual disk; sizes in bytes. */
struct segmap_geometry {
	uint64_t segment_count;
	uint32_t segment_size;
	uint32_t block_size;
	bool reclaim;
	bool read_only;
};

/* 0, or -EINVAL for a shape that cannot be. */
int segmap_geometry_check(const struct segmap_geometry *geometry);

struct segmap_engine {
	/* What channels look at. */
	struct segmap_table table;
	_Atomic(uint64_t) open_until_ticks; /* until then I/O may begin; 0 while suspended, removed or without a lease */
	uint32_t blocks_per_segment;
	struct segmap_geometry geometry;
	const struct segmap_lease *lease;
	/* A container that may hold data of the virtual disk is not attached: a flush would not reach it, and fails. */
	atomic_bool lacks_container;

	/* The owner's. */
	struct segmap_plane *plane;
	uint64_t table_id;
	uint64_t sequence;
	bool present;
	bool suspended;
	struct segmap_slots slots;
	struct segmap_generations generations;
	struct segmap_channel own; /* counts what the owner begins, and what it sees */
	struct segmap_faults faults;
	struct segmap_parts unleased; /* wait for a lease */
	struct segmap_parts held; /* wait for the end of a suspension */
	uint32_t parked;
	uint64_t earliest_parked_ns; /* no part has been parked before; UINT64_MAX if none is */
	TAILQ_ENTRY(segmap_engine) link;
	struct segmap_engine *next_of_id;
};

TAILQ_HEAD(segmap_engines, segmap_engine);

/* ---- on a channel's thread ---- */

/* What to do with a part now. */
enum segmap_step {
	SEGMAP_STEP_FORWARD, /* it has begun: do it on its container, then segmap_channel_complete */
	SEGMAP_STEP_ZEROES, /* end the read successfully with zeroes */
	SEGMAP_STEP_COMPLETE, /* end it with part->status */
	SEGMAP_STEP_ASK_OWNER, /* the owner goes on: segmap_engine_submit, or segmap_engine_complete after an I/O */
};

void segmap_channel_init(struct segmap_channel *channel, struct segmap_engine *engine);

/* A part arrives, or is tried again. `now_ticks` may be a little old, as `ticks_at` knows. */
enum segmap_step segmap_channel_submit(struct segmap_channel *channel, struct segmap_part *part, uint64_t now_ticks);

/*
 * The container I/O of a forwarded part has ended. If *drained, the owner is to be told (segmap_engine_drained), at the
 * latest after what the step asks for.
 *
 * Not `settled`: the part ends for its host with a failure, but its container may still carry it out (the connection was
 * lost). Barriers go on waiting for it, until whoever counts it (part->counted) settles the part, or a copy of it.
 */
enum segmap_step segmap_channel_complete(struct segmap_channel *channel, struct segmap_part *part,
					 enum segmap_status status, bool settled, uint64_t now_ticks, bool *drained);

/* Nothing of the part, which this channel counts, can reach its container any more. Returns what *drained is above. */
bool segmap_channel_settle(struct segmap_channel *channel, struct segmap_part *part);

/* The container could not take the part's I/O now: it has not begun after all. Returns what *drained is above. */
bool segmap_channel_withdraw(struct segmap_channel *channel, struct segmap_part *part);

/* ---- on the owner's thread ---- */

/* Called by the plane. 0, -EINVAL or -ENOMEM. */
int segmap_engine_open(struct segmap_engine *engine, struct segmap_plane *plane, uint64_t table_id,
		       const struct segmap_geometry *geometry);
void segmap_engine_close(struct segmap_engine *engine);

/* Recompute until when channels may begin I/O; called whenever the lease or the table's standing changes. */
void segmap_engine_refresh(struct segmap_engine *engine);

void segmap_engine_submit(struct segmap_engine *engine, struct segmap_part *part, uint64_t now_ns);

/* part->status is that of the container I/O; the owner had begun it, or the channel left the judgement to the owner. */
void segmap_engine_complete(struct segmap_engine *engine, struct segmap_part *part, bool settled, uint64_t now_ns);

/* As segmap_channel_settle, for a part that the owner had begun. */
void segmap_engine_settle(struct segmap_engine *engine, struct segmap_part *part);

/* As segmap_channel_withdraw, for a part that the owner had begun. */
void segmap_engine_withdraw(struct segmap_engine *engine, struct segmap_part *part);

/* A channel has drained, or `turn` has been done. */
void segmap_engine_drained(struct segmap_engine *engine);

/* Barrier once every part begun so far has ended, or at the I/O deadline. The caller keeps `barrier` until then. */
void segmap_engine_barrier(struct segmap_engine *engine, struct segmap_barrier *barrier, uint64_t now_ns);

/* Drop the parked parts of one owner (a lost host connection; NULL: of all), or of one I/O: they end with CANCELLED. */
void segmap_engine_reset(struct segmap_engine *engine, const void *owner);
void segmap_engine_abort(struct segmap_engine *engine, const void *io);

/* Entries for segments from `start`; `length` is `count`, or 1 to fill. */
enum segmap_status segmap_engine_check_entries(const struct segmap_engine *engine, uint64_t start, uint64_t count,
					       const uint64_t *entries, uint64_t length);
enum segmap_status segmap_engine_set_entries(struct segmap_engine *engine, uint64_t start, uint64_t count,
					     const uint64_t *entries, uint64_t length, uint64_t now_ns);
enum segmap_status segmap_engine_set_state(struct segmap_engine *engine, uint64_t start, uint64_t count,
					   uint32_t state, bool active, uint64_t now_ns);

/* Answers [0033]. REPLACE counts even if nobody waits for the fault any more. */
enum segmap_status segmap_engine_answer_replace(struct segmap_engine *engine, uint64_t fault_id, uint64_t start,
						uint64_t count, const uint64_t *entries, uint64_t length,
						uint64_t now_ns);
enum segmap_status segmap_engine_answer_fail_request(struct segmap_engine *engine, uint64_t fault_id,
						     enum segmap_status status);
enum segmap_status segmap_engine_answer_fail_segment(struct segmap_engine *engine, uint64_t fault_id,
						     uint64_t segment, uint64_t now_ns);

/* The table is deleted: entries forgotten; I/O that still comes faults with NO-TABLE [claim 28]. */
void segmap_engine_remove(struct segmap_engine *engine, uint64_t now_ns);
/* New I/O parks, without faults, until resume. */
void segmap_engine_suspend(struct segmap_engine *engine);
void segmap_engine_resume(struct segmap_engine *engine, uint64_t now_ns);
/* 0, -EINVAL or -ENOMEM; parked I/O beyond a smaller end ends with OUT_OF_RANGE. */
int segmap_engine_resize(struct segmap_engine *engine, uint64_t segment_count, uint64_t now_ns);

/* Called by the plane, which has refreshed the engine: a new epoch, entries forgotten; parked parts wait for a lease. */
void segmap_engine_lease_expired(struct segmap_engine *engine, uint64_t now_ns);
/* What waited for the lease is tried, and faults now if its entry stops it. */
void segmap_engine_lease_granted(struct segmap_engine *engine, uint64_t now_ns);

/* Time has passed: parked I/O over the park limit is dropped, late barriers fail. */
void segmap_engine_tick(struct segmap_engine *engine, uint64_t now_ns);
/* When a tick may have something to do; UINT64_MAX: never. */
uint64_t segmap_engine_next_deadline(const struct segmap_engine *engine);

/* Visit every parked part: first those of faults, oldest first. The visitor changes nothing. */
void segmap_engine_each_parked(const struct segmap_engine *engine,
			       void (*visit)(void *ctx, const struct segmap_part *part), void *ctx);

#endif
