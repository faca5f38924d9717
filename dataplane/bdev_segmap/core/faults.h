/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The outstanding faults of one table [0032]: at most one for each segment and kind, found by that or by their id.
 *
 * All memory is taken when the table is created; a fault costs nothing until it is used for the first time. The owner's.
 */
#ifndef SEGMAP_FAULTS_H
#define SEGMAP_FAULTS_H

#include "part.h"

/* A fault, and the parts that wait for its answer. */
struct segmap_fault {
	uint64_t fault_id;
	uint64_t table;
	uint64_t segment;
	uint64_t entry; /* as seen */
	uint64_t since_ns;
	uint32_t offset_blocks;
	uint32_t length_blocks;
	enum segmap_operation operation;
	enum segmap_fault_kind kind;
	enum segmap_state state; /* what stopped the operation */
	struct segmap_parts parts;
	TAILQ_ENTRY(segmap_fault) link;
	struct segmap_fault *next_of_place; /* in its hash chains */
	struct segmap_fault *next_of_id;
};

TAILQ_HEAD(segmap_fault_list, segmap_fault);

struct segmap_faults {
	struct segmap_fault_list outstanding; /* oldest first: ids rise */
	uint32_t count;
	uint32_t limit;
	uint32_t fresh; /* pool[fresh...] have never been used */
	uint32_t buckets;
	struct segmap_fault *pool;
	struct segmap_fault_list spare;
	struct segmap_fault **by_place;
	struct segmap_fault **by_id;
};

/* Room for `limit` faults. 0 or -ENOMEM. */
int segmap_faults_open(struct segmap_faults *faults, uint32_t limit);
void segmap_faults_close(struct segmap_faults *faults);

struct segmap_fault *segmap_faults_at(const struct segmap_faults *faults, uint64_t segment,
				      enum segmap_fault_kind kind);
struct segmap_fault *segmap_faults_find(const struct segmap_faults *faults, uint64_t fault_id);

/* A new fault that `part` raises at `entry`, without parts yet. Its place must be free, and so must room be. */
struct segmap_fault *segmap_faults_add(struct segmap_faults *faults, uint64_t fault_id, const struct segmap_part *part,
				       uint64_t entry, enum segmap_fault_kind kind);

/* Forget it; it has no parts any more. */
void segmap_faults_remove(struct segmap_faults *faults, struct segmap_fault *fault);

#endif
