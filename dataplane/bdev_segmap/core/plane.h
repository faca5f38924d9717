/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data plane's core: its tables, its lease, and what it refuses.
 *
 * Everything that carries entries bears a stamp. A stamp of a lower term, of another incarnation, of another epoch or of
 * another session is refused; within a table, sequences are applied in order and without gaps. A right sequence is
 * consumed even if its content is refused. Sessions of the daemon with a controller are numbered here: what was sent in
 * an earlier one is refused, whoever still has it. All functions are the owner's, and the same as in mapping/plane.py.
 */
#ifndef SEGMAP_PLANE_H
#define SEGMAP_PLANE_H

#include "engine.h"

#define SEGMAP_TABLES_MAX SEGMAP_WIRE_TABLES_MAX
#define SEGMAP_TABLE_BUCKETS 4096u
#define SEGMAP_SESSION_SHIFT 32
#define SEGMAP_SESSIONS_MAX UINT32_MAX

/* How long parked I/O and container I/O may take, and how much may be parked at one table. */
struct segmap_limits {
	uint64_t park_ns;
	uint64_t io_ns;
	uint32_t parked_max;
};

/* Where a message stands in the order of things; `sequence` is 0 where none is needed, `epoch` is numbered. */
struct segmap_stamp {
	uint64_t term;
	uint64_t incarnation;
	uint64_t epoch;
	uint64_t sequence;
};

/* One fault's answer; `entries` (`length` of them, `count` or 1) only for REPLACE. */
struct segmap_answer {
	uint64_t fault_id;
	uint32_t action;
	uint32_t status;
	uint64_t start;
	uint64_t count;
	const uint64_t *entries;
	uint64_t length;
};

/* A copy or zero of segments, under way. The caller keeps it until its end. */
struct segmap_job {
	uint64_t epoch;
	struct segmap_slots slots;
	TAILQ_ENTRY(segmap_job) link;
};

TAILQ_HEAD(segmap_jobs, segmap_job);

struct segmap_plane {
	const struct segmap_effects *effects;
	void *ctx;
	uint8_t instance[16];
	uint8_t cluster[16];
	uint64_t term;
	uint64_t incarnation; /* 0: not admitted yet */
	uint64_t session;     /* what stamps have to bear; 0: no number */
	uint64_t sessions;    /* how many have begun */
	struct segmap_lease lease;
	struct segmap_limits limits;
	struct segmap_engines engines; /* in the order of their creation */
	struct segmap_engine *by_id[SEGMAP_TABLE_BUCKETS];
	uint32_t table_count;
	struct segmap_slots bound;
	uint8_t containers[SEGMAP_SLOTS][16];
	uint64_t fault_ids;
	uint64_t tick_at_ns; /* no tick has anything to do before */
	struct segmap_jobs jobs;
};

/* `effects` and `ctx` outlive the plane; `limits` NULL: the defaults. */
void segmap_plane_init(struct segmap_plane *plane, const uint8_t instance[16], const struct segmap_limits *limits,
		       const struct segmap_effects *effects, void *ctx);

/* What stamps say of the epoch and of the session in which they were made. */
static inline uint64_t
segmap_numbered(uint64_t epoch, uint64_t session)
{
	return session << SEGMAP_SESSION_SHIFT | epoch;
}

/* A session with a controller is about to begin, as number `session`: stamps of all before it are refused. */
enum segmap_status segmap_plane_begin_session(struct segmap_plane *plane);

/*
 * A controller of `term` has admitted this data plane. Outstanding faults are to be sent again. `session`: what its
 * stamps will bear, the number of the session that has begun last, or 0.
 */
enum segmap_status segmap_plane_admit(struct segmap_plane *plane, uint64_t term, uint64_t incarnation,
				      const uint8_t cluster[16], uint64_t park_ns, uint64_t io_ns,
				      uint64_t lease_max_ns, uint64_t session, uint64_t now_ns);

/* OK if the stamp is of the present term, incarnation, epoch and session. Tick first. */
enum segmap_status segmap_plane_check(const struct segmap_plane *plane, const struct segmap_stamp *stamp);

enum segmap_status segmap_plane_grant_lease(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					    uint64_t sent_ns, uint64_t duration_ns, uint64_t now_ns);

void segmap_plane_tick(struct segmap_plane *plane, uint64_t now_ns);
/* When a tick may have something to do; UINT64_MAX: never. */
uint64_t segmap_plane_next_deadline(const struct segmap_plane *plane);
/* An engine has a deadline that may be earlier than all others. */
void segmap_plane_note_deadline(struct segmap_plane *plane, uint64_t deadline_ns);

struct segmap_engine *segmap_plane_find(const struct segmap_plane *plane, uint64_t table_id);

/* A new table, every entry INVALID: OK, EXISTS, LIMIT, NO_CONTAINER, OUT_OF_RANGE (its shape) or NO_SPACE (memory). */
enum segmap_status segmap_plane_create_table(struct segmap_plane *plane, struct segmap_engine *engine,
					     uint64_t table_id, const struct segmap_geometry *geometry,
					     const struct segmap_slots *slots);
/* Forget a table's entries; its I/O faults with NO-TABLE until it is dropped. */
enum segmap_status segmap_plane_remove_table(struct segmap_plane *plane, uint64_t table_id, uint64_t now_ns);
/* The virtual disk is gone: parked I/O is dropped. No part of it may be begun, and no channel is left. */
void segmap_plane_drop_table(struct segmap_plane *plane, struct segmap_engine *engine);

/*
 * Replace a table's container list. A container can leave it only when no entry can still name it. `lacks`: another one
 * may hold data of the virtual disk and is not attached here, so that flushes fail until a list is complete.
 */
enum segmap_status segmap_plane_table_slots(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					    uint64_t table_id, const struct segmap_slots *slots, bool lacks,
					    uint64_t now_ns);

/* The container with this UUID is attached as `slot`. */
enum segmap_status segmap_plane_bind_slot(struct segmap_plane *plane, uint32_t slot, const uint8_t container[16]);
/* Refused while a table lists the slot or a job uses it. */
enum segmap_status segmap_plane_unbind_slot(struct segmap_plane *plane, uint32_t slot);

/*
 * With `barrier`, OK means: applied; answer when barrier_reached comes, which may be before the call returns. After any
 * other status the barrier is not used.
 */
enum segmap_status segmap_plane_set_entries(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					    uint64_t table_id, uint64_t start, uint64_t count,
					    const uint64_t *entries, uint64_t length, struct segmap_barrier *barrier,
					    uint64_t now_ns);
enum segmap_status segmap_plane_set_state(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					  uint64_t table_id, uint64_t start, uint64_t count, uint32_t state,
					  bool active, struct segmap_barrier *barrier, uint64_t now_ns);
enum segmap_status segmap_plane_suspend(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					uint64_t table_id, struct segmap_barrier *barrier, uint64_t now_ns);
enum segmap_status segmap_plane_resume(struct segmap_plane *plane, const struct segmap_stamp *stamp,
				       uint64_t table_id, struct segmap_barrier *barrier, uint64_t now_ns);

/* Answers in order. The first refusal is the status; the others are applied all the same. */
enum segmap_status segmap_plane_answer_faults(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					      uint64_t table_id, const struct segmap_answer *answers, uint32_t count,
					      uint64_t now_ns);

/* A copy or zero in the containers `slots` wants to begin: leased like any I/O. */
enum segmap_status segmap_plane_begin_job(struct segmap_plane *plane, const struct segmap_stamp *stamp,
					  struct segmap_job *job, const struct segmap_slots *slots, uint64_t now_ns);
/* True while its next container I/O may begin. */
bool segmap_plane_may_continue(const struct segmap_plane *plane, const struct segmap_job *job, uint64_t now_ns);
/* Its I/O has ended; LEASE_EXPIRED if it outlived its lease. */
enum segmap_status segmap_plane_end_job(struct segmap_plane *plane, struct segmap_job *job,
					enum segmap_status status, uint64_t now_ns);

#endif
