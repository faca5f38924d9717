/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The mapping table: a u64 per segment in anonymous memory [0016].
 *
 * One thread, the owner, changes it; any thread reads single entries without a lock. Memory is reserved, not used, until
 * an entry is written, and a wipe gives it back. Memory that a reader may still look at is never unmapped before the
 * table is closed: a table that outgrows its reservation moves, and the emptied old one then says INVALID, which sends
 * the reader to the owner.
 */
#ifndef SEGMAP_TABLE_H
#define SEGMAP_TABLE_H

#include <stdatomic.h>

#include "entry.h"

#define SEGMAP_SEGMENTS_MAX (UINT64_C(1) << 36)

typedef _Atomic(uint64_t) segmap_cell;

struct segmap_retired;

struct segmap_table {
	_Atomic(segmap_cell *) cells;
	_Atomic(uint64_t) segment_count;
	/* The owner's. */
	uint64_t capacity;
	uint64_t *used; /* a bit for each chunk that may hold entries other than INVALID */
	struct segmap_retired *retired;
};

/* All entries INVALID. 0, -EINVAL or -ENOMEM. */
int segmap_table_open(struct segmap_table *table, uint64_t segment_count);
void segmap_table_close(struct segmap_table *table);

static inline uint64_t
segmap_table_count(const struct segmap_table *table)
{
	return atomic_load_explicit(&table->segment_count, memory_order_acquire);
}

/* One entry; `segment` is below the count. From any thread. */
static inline uint64_t
segmap_table_get(const struct segmap_table *table, uint64_t segment)
{
	segmap_cell *cells = atomic_load_explicit(&table->cells, memory_order_acquire);

	return atomic_load_explicit(&cells[segment], memory_order_relaxed);
}

/* True if `count` >= 1 entries from `start` exist. */
static inline bool
segmap_table_in_range(const struct segmap_table *table, uint64_t start, uint64_t count)
{
	uint64_t segments = segmap_table_count(table);

	return start < segments && count > 0 && count <= segments - start;
}

/* The range is the caller's check in all of these; they are the owner's. Entries are stored normalised. */
void segmap_table_set(struct segmap_table *table, uint64_t start, uint64_t count, const uint64_t *entries);
void segmap_table_fill(struct segmap_table *table, uint64_t start, uint64_t count, uint64_t entry);
void segmap_table_set_state(struct segmap_table *table, uint64_t start, uint64_t count, enum segmap_state state,
			    bool active);
void segmap_table_copy(const struct segmap_table *table, uint64_t start, uint64_t count, uint64_t *entries);

/* Every entry INVALID, memory given back. */
void segmap_table_wipe(struct segmap_table *table);

/* Entries that stay are kept, new ones are INVALID. 0, -EINVAL or -ENOMEM (then nothing has changed). */
int segmap_table_resize(struct segmap_table *table, uint64_t segment_count);

/* How many entries are in each state; takes time only for memory in use. */
void segmap_table_counts(const struct segmap_table *table, uint64_t counts[5]);

/* True if an entry has a location in one of `slots`. */
bool segmap_table_names(const struct segmap_table *table, const struct segmap_slots *slots);

#endif
