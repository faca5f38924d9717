/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The entry: one u64 that says where a segment lives and what may be done with it (patent [0020]-[0030]).
 *
 * Bit 0 mapped, 1 NO-WRITE, 2 ZERO, 3 ERROR; bits 4-15 container slot, 16-63 physical segment. An entry without `mapped`
 * is INVALID, so zero-filled memory is a correct table [0026]. The highest active state wins: INVALID, ERROR, ZERO,
 * NO-WRITE.
 */
#ifndef SEGMAP_ENTRY_H
#define SEGMAP_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "../segmap_wire.h"

#define SEGMAP_MAPPED UINT64_C(1)
#define SEGMAP_NO_WRITE UINT64_C(2)
#define SEGMAP_ZERO UINT64_C(4)
#define SEGMAP_ERROR UINT64_C(8)
#define SEGMAP_FLAGS UINT64_C(15)

#define SEGMAP_INVALID_ENTRY UINT64_C(0)
#define SEGMAP_ZERO_ENTRY (SEGMAP_MAPPED | SEGMAP_ZERO)
#define SEGMAP_ERROR_ENTRY (SEGMAP_MAPPED | SEGMAP_ERROR)

#define SEGMAP_SLOTS 4096u

/* The container slot and the physical segment; they mean something only if the entry has a location. */
static inline uint32_t
segmap_slot_of(uint64_t entry)
{
	return (uint32_t)(entry >> 4) & (SEGMAP_SLOTS - 1);
}

static inline uint64_t
segmap_segment_of(uint64_t entry)
{
	return entry >> 16;
}

/* True if I/O may reach the location: mapped, and neither ZERO nor ERROR. */
static inline bool
segmap_has_location(uint64_t entry)
{
	return (entry & (SEGMAP_MAPPED | SEGMAP_ZERO | SEGMAP_ERROR)) == SEGMAP_MAPPED;
}

/* The same entry without bits that its state makes meaningless. */
static inline uint64_t
segmap_normalised(uint64_t entry)
{
	return (entry & SEGMAP_MAPPED) != 0 ? entry : SEGMAP_INVALID_ENTRY;
}

/* The highest active state. */
static inline enum segmap_state
segmap_state_of(uint64_t entry)
{
	if ((entry & SEGMAP_MAPPED) == 0) {
		return SEGMAP_STATE_INVALID;
	}
	if ((entry & SEGMAP_ERROR) != 0) {
		return SEGMAP_STATE_ERROR;
	}
	if ((entry & SEGMAP_ZERO) != 0) {
		return SEGMAP_STATE_ZERO;
	}
	return (entry & SEGMAP_NO_WRITE) != 0 ? SEGMAP_STATE_NO_WRITE : SEGMAP_STATE_NONE;
}

/* A set of container slots. */
struct segmap_slots {
	uint64_t words[SEGMAP_SLOTS / 64];
};

static inline bool
segmap_slots_have(const struct segmap_slots *slots, uint32_t slot)
{
	return (slots->words[slot / 64] >> (slot % 64) & 1) != 0;
}

static inline void
segmap_slots_add(struct segmap_slots *slots, uint32_t slot)
{
	slots->words[slot / 64] |= UINT64_C(1) << (slot % 64);
}

static inline void
segmap_slots_remove(struct segmap_slots *slots, uint32_t slot)
{
	slots->words[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
}

/* True if every slot of `part` is in `whole`. */
static inline bool
segmap_slots_within(const struct segmap_slots *part, const struct segmap_slots *whole)
{
	for (uint32_t i = 0; i < SEGMAP_SLOTS / 64; i++) {
		if ((part->words[i] & ~whole->words[i]) != 0) {
			return false;
		}
	}
	return true;
}

#endif
