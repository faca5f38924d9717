/* SPDX-License-Identifier: BSD-3-Clause */
#include "faults.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "entry.h"

/* Twice as many buckets as faults, a power of two. */
static uint32_t
buckets_for(uint32_t limit)
{
	uint32_t buckets = 2;

	while (buckets / 2 < limit) {
		buckets *= 2;
	}
	return buckets;
}

static struct segmap_fault **
place_bucket(const struct segmap_faults *faults, uint64_t segment, enum segmap_fault_kind kind)
{
	uint64_t mixed = (segment * 8 + kind) * UINT64_C(0x9e3779b97f4a7c15);

	return &faults->by_place[(mixed >> 32) & (faults->buckets - 1)];
}

/* Ids are given in order: they spread by themselves. */
static struct segmap_fault **
id_bucket(const struct segmap_faults *faults, uint64_t fault_id)
{
	return &faults->by_id[fault_id & (faults->buckets - 1)];
}

int
segmap_faults_open(struct segmap_faults *faults, uint32_t limit)
{
	memset(faults, 0, sizeof(*faults));
	TAILQ_INIT(&faults->outstanding);
	TAILQ_INIT(&faults->spare);
	faults->limit = limit;
	faults->buckets = buckets_for(limit);
	faults->pool = calloc(limit, sizeof(*faults->pool));
	faults->by_place = calloc(faults->buckets, sizeof(*faults->by_place));
	faults->by_id = calloc(faults->buckets, sizeof(*faults->by_id));
	if (faults->pool == NULL || faults->by_place == NULL || faults->by_id == NULL) {
		segmap_faults_close(faults);
		return -ENOMEM;
	}
	return 0;
}

void
segmap_faults_close(struct segmap_faults *faults)
{
	free(faults->pool);
	free(faults->by_place);
	free(faults->by_id);
	memset(faults, 0, sizeof(*faults));
}

struct segmap_fault *
segmap_faults_at(const struct segmap_faults *faults, uint64_t segment, enum segmap_fault_kind kind)
{
	struct segmap_fault *fault = *place_bucket(faults, segment, kind);

	while (fault != NULL && (fault->segment != segment || fault->kind != kind)) {
		fault = fault->next_of_place;
	}
	return fault;
}

struct segmap_fault *
segmap_faults_find(const struct segmap_faults *faults, uint64_t fault_id)
{
	struct segmap_fault *fault = *id_bucket(faults, fault_id);

	while (fault != NULL && fault->fault_id != fault_id) {
		fault = fault->next_of_id;
	}
	return fault;
}

static struct segmap_fault *
take_spare(struct segmap_faults *faults)
{
	struct segmap_fault *fault = TAILQ_FIRST(&faults->spare);

	if (fault != NULL) {
		TAILQ_REMOVE(&faults->spare, fault, link);
		return fault;
	}
	assert(faults->fresh < faults->limit);
	return &faults->pool[faults->fresh++];
}

struct segmap_fault *
segmap_faults_add(struct segmap_faults *faults, uint64_t fault_id, const struct segmap_part *part, uint64_t entry,
		  enum segmap_fault_kind kind)
{
	struct segmap_fault **place = place_bucket(faults, part->segment, kind);
	struct segmap_fault **id = id_bucket(faults, fault_id);
	struct segmap_fault *fault = take_spare(faults);

	*fault = (struct segmap_fault) {
		.fault_id = fault_id,
		.segment = part->segment,
		.entry = entry,
		.offset_blocks = part->offset_blocks,
		.length_blocks = part->length_blocks,
		.operation = part->operation,
		.kind = kind,
		.state = segmap_state_of(entry),
		.next_of_place = *place,
		.next_of_id = *id,
	};
	TAILQ_INIT(&fault->parts);
	*place = fault;
	*id = fault;
	TAILQ_INSERT_TAIL(&faults->outstanding, fault, link);
	faults->count++;
	return fault;
}

void
segmap_faults_remove(struct segmap_faults *faults, struct segmap_fault *fault)
{
	struct segmap_fault **at = place_bucket(faults, fault->segment, fault->kind);

	while (*at != fault) {
		at = &(*at)->next_of_place;
	}
	*at = fault->next_of_place;
	at = id_bucket(faults, fault->fault_id);
	while (*at != fault) {
		at = &(*at)->next_of_id;
	}
	*at = fault->next_of_id;
	TAILQ_REMOVE(&faults->outstanding, fault, link);
	TAILQ_INSERT_HEAD(&faults->spare, fault, link);
	faults->count--;
}
