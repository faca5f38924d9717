/* SPDX-License-Identifier: BSD-3-Clause */
#define _DEFAULT_SOURCE
#include "table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rules.h"

#define CHUNK UINT64_C(4096) /* entries */
#define WORD_BITS UINT64_C(64)

/* A reservation that the table has outgrown: empty, kept for readers that still hold its address. */
struct segmap_retired {
	struct segmap_retired *next;
	segmap_cell *cells;
	uint64_t capacity;
};

static uint64_t
smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Reservations are whole chunks, so that they are whole pages. */
static uint64_t
capacity_for(uint64_t segment_count)
{
	return (segment_count + CHUNK - 1) / CHUNK * CHUNK;
}

static segmap_cell *
reserve(uint64_t capacity)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *memory = mmap(NULL, capacity * sizeof(segmap_cell), PROT_READ | PROT_WRITE, flags, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static void
release(segmap_cell *cells, uint64_t capacity)
{
	munmap(cells, capacity * sizeof(segmap_cell));
}

/* Readers may come meanwhile: they see the entry, or INVALID. */
static void
empty(segmap_cell *cells, uint64_t capacity)
{
	int rc = madvise(cells, capacity * sizeof(segmap_cell), MADV_DONTNEED);

	assert(rc == 0);
	(void)rc;
}

static uint64_t
used_words(uint64_t capacity)
{
	return (capacity / CHUNK + WORD_BITS - 1) / WORD_BITS;
}

static segmap_cell *
cells_of(const struct segmap_table *table)
{
	return atomic_load_explicit(&table->cells, memory_order_relaxed);
}

static bool
is_used(const struct segmap_table *table, uint64_t chunk)
{
	return (table->used[chunk / WORD_BITS] >> (chunk % WORD_BITS) & 1) != 0;
}

static void
mark_used(struct segmap_table *table, uint64_t start, uint64_t count)
{
	for (uint64_t chunk = start / CHUNK; chunk <= (start + count - 1) / CHUNK; chunk++) {
		table->used[chunk / WORD_BITS] |= UINT64_C(1) << (chunk % WORD_BITS);
	}
}

/* The next piece of [*at, end) that lies in used chunks: its length, 0 at the end; *at moves to its start. */
static uint64_t
next_used(const struct segmap_table *table, uint64_t *at, uint64_t end)
{
	while (*at < end) {
		uint64_t chunk = *at / CHUNK;

		if (is_used(table, chunk)) {
			return smaller((chunk + 1) * CHUNK, end) - *at;
		}
		if (table->used[chunk / WORD_BITS] == 0) {
			*at = (chunk / WORD_BITS + 1) * WORD_BITS * CHUNK;
		} else {
			*at = (chunk + 1) * CHUNK;
		}
	}
	return 0;
}

int
segmap_table_open(struct segmap_table *table, uint64_t segment_count)
{
	segmap_cell *cells;

	if (segment_count == 0 || segment_count > SEGMAP_SEGMENTS_MAX) {
		return -EINVAL;
	}
	memset(table, 0, sizeof(*table));
	table->capacity = capacity_for(segment_count);
	table->used = calloc(used_words(table->capacity), sizeof(uint64_t));
	if (table->used == NULL) {
		return -ENOMEM;
	}
	cells = reserve(table->capacity);
	if (cells == NULL) {
		free(table->used);
		return -ENOMEM;
	}
	atomic_store(&table->cells, cells);
	atomic_store(&table->segment_count, segment_count);
	return 0;
}

void
segmap_table_close(struct segmap_table *table)
{
	struct segmap_retired *retired;

	while ((retired = table->retired) != NULL) {
		table->retired = retired->next;
		release(retired->cells, retired->capacity);
		free(retired);
	}
	release(cells_of(table), table->capacity);
	free(table->used);
	memset(table, 0, sizeof(*table));
}

static void
store(segmap_cell *cell, uint64_t entry)
{
	atomic_store_explicit(cell, entry, memory_order_relaxed);
}

void
segmap_table_set(struct segmap_table *table, uint64_t start, uint64_t count, const uint64_t *entries)
{
	segmap_cell *cells = cells_of(table) + start;

	mark_used(table, start, count);
	for (uint64_t i = 0; i < count; i++) {
		store(&cells[i], segmap_normalised(entries[i]));
	}
}

static void
clear(struct segmap_table *table, uint64_t start, uint64_t end)
{
	segmap_cell *cells = cells_of(table);
	uint64_t length;

	for (uint64_t at = start; (length = next_used(table, &at, end)) != 0; at += length) {
		for (uint64_t i = 0; i < length; i++) {
			store(&cells[at + i], SEGMAP_INVALID_ENTRY);
		}
	}
}

void
segmap_table_fill(struct segmap_table *table, uint64_t start, uint64_t count, uint64_t entry)
{
	segmap_cell *cells = cells_of(table) + start;
	uint64_t known = segmap_normalised(entry);

	if (known == SEGMAP_INVALID_ENTRY) {
		clear(table, start, start + count);
		return;
	}
	mark_used(table, start, count);
	for (uint64_t i = 0; i < count; i++) {
		store(&cells[i], known);
	}
}

void
segmap_table_set_state(struct segmap_table *table, uint64_t start, uint64_t count, enum segmap_state state, bool active)
{
	segmap_cell *cells = cells_of(table) + start;

	mark_used(table, start, count);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t entry = atomic_load_explicit(&cells[i], memory_order_relaxed);

		store(&cells[i], segmap_with_state(entry, state, active));
	}
}

void
segmap_table_copy(const struct segmap_table *table, uint64_t start, uint64_t count, uint64_t *entries)
{
	for (uint64_t i = 0; i < count; i++) {
		entries[i] = segmap_table_get(table, start + i);
	}
}

void
segmap_table_wipe(struct segmap_table *table)
{
	empty(cells_of(table), table->capacity);
	memset(table->used, 0, used_words(table->capacity) * sizeof(uint64_t));
}

/* Copy what is in use to a larger reservation, publish that, and retire the old one. */
static int
move(struct segmap_table *table, uint64_t capacity)
{
	segmap_cell *old = cells_of(table), *cells = NULL;
	struct segmap_retired *retired = malloc(sizeof(*retired));
	uint64_t *used = calloc(used_words(capacity), sizeof(uint64_t));
	uint64_t length;

	if (retired == NULL || used == NULL || (cells = reserve(capacity)) == NULL) {
		free(retired);
		free(used);
		return -ENOMEM;
	}
	for (uint64_t at = 0; (length = next_used(table, &at, segmap_table_count(table))) != 0; at += length) {
		for (uint64_t i = at; i < at + length; i++) {
			store(&cells[i], atomic_load_explicit(&old[i], memory_order_relaxed));
		}
	}
	memcpy(used, table->used, used_words(table->capacity) * sizeof(uint64_t));
	*retired = (struct segmap_retired) { .next = table->retired, .cells = old, .capacity = table->capacity };
	table->retired = retired;
	free(table->used);
	table->used = used;
	table->capacity = capacity;
	atomic_store_explicit(&table->cells, cells, memory_order_release);
	empty(old, retired->capacity);
	return 0;
}

int
segmap_table_resize(struct segmap_table *table, uint64_t segment_count)
{
	uint64_t before = segmap_table_count(table);

	if (segment_count == 0 || segment_count > SEGMAP_SEGMENTS_MAX) {
		return -EINVAL;
	}
	if (segment_count > table->capacity) {
		/* Twice as large at least, so that few reservations are ever retired. */
		uint64_t wanted = capacity_for(segment_count);
		uint64_t doubled = smaller(2 * table->capacity, SEGMAP_SEGMENTS_MAX);
		int rc = move(table, wanted > doubled ? wanted : doubled);

		if (rc != 0) {
			return rc;
		}
	}
	atomic_store_explicit(&table->segment_count, segment_count, memory_order_release);
	if (segment_count < before) {
		clear(table, segment_count, before);
	}
	return 0;
}

void
segmap_table_counts(const struct segmap_table *table, uint64_t counts[5])
{
	uint64_t segments = segmap_table_count(table), seen = 0, length;

	memset(counts, 0, 5 * sizeof(counts[0]));
	for (uint64_t at = 0; (length = next_used(table, &at, segments)) != 0; at += length) {
		for (uint64_t i = at; i < at + length; i++) {
			counts[segmap_state_of(segmap_table_get(table, i))]++;
		}
		seen += length;
	}
	counts[SEGMAP_STATE_INVALID] += segments - seen;
}

bool
segmap_table_names(const struct segmap_table *table, const struct segmap_slots *slots)
{
	uint64_t segments = segmap_table_count(table), length;

	for (uint64_t at = 0; (length = next_used(table, &at, segments)) != 0; at += length) {
		for (uint64_t i = at; i < at + length; i++) {
			uint64_t entry = segmap_table_get(table, i);

			if (segmap_has_location(entry) && segmap_slots_have(slots, segmap_slot_of(entry))) {
				return true;
			}
		}
	}
	return false;
}
