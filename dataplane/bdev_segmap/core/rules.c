/* SPDX-License-Identifier: BSD-3-Clause */
#include "rules.h"

#define FORWARD { SEGMAP_ACTION_FORWARD, 0 }
#define ZEROES { SEGMAP_ACTION_RETURN_ZEROES, 0 }
#define DONE { SEGMAP_ACTION_COMPLETE, 0 }
#define FAIL { SEGMAP_ACTION_FAIL, 0 }
#define FAULT(kind) { SEGMAP_ACTION_FAULT, SEGMAP_FAULT_##kind }

/* The columns are READ, WRITE, UNMAP, WRITE_ZEROES, FLUSH and COMPARE_AND_WRITE. */
#define STOPPED_ROWS \
	[SEGMAP_STATE_INVALID] = { FAULT(READ), FAULT(WRITE), FAULT(READ), FAULT(READ), FORWARD, FAULT(EXCLUSIVE) }, \
	[SEGMAP_STATE_ERROR] = { FAIL, FAIL, FAIL, FAIL, FORWARD, FAIL }, \
	[SEGMAP_STATE_ZERO] = { ZEROES, FAULT(WRITE), DONE, DONE, FORWARD, FAULT(EXCLUSIVE) }

/* First index: whether the part is a whole segment of a RECLAIM table; there, discards ask for the segment's return. */
const struct segmap_decision segmap_decisions[2][SEGMAP_STATES][SEGMAP_OPERATIONS] = {
	{
		STOPPED_ROWS,
		[SEGMAP_STATE_NO_WRITE] = { FORWARD, FAULT(WRITE), DONE, FAULT(WRITE), FORWARD, FAULT(EXCLUSIVE) },
		[SEGMAP_STATE_NONE] = { FORWARD, FORWARD, FORWARD, FORWARD, FORWARD, FORWARD },
	},
	{
		STOPPED_ROWS,
		[SEGMAP_STATE_NO_WRITE] = { FORWARD, FAULT(WRITE), FAULT(RECLAIM), FAULT(RECLAIM), FORWARD,
					    FAULT(EXCLUSIVE) },
		[SEGMAP_STATE_NONE] = { FORWARD, FORWARD, FAULT(RECLAIM), FAULT(RECLAIM), FORWARD, FORWARD },
	},
};

bool
segmap_state_allowed(uint32_t state, bool active)
{
	if (state == SEGMAP_STATE_NO_WRITE) {
		return true;
	}
	return active && (state == SEGMAP_STATE_INVALID || state == SEGMAP_STATE_ZERO || state == SEGMAP_STATE_ERROR);
}

uint64_t
segmap_with_state(uint64_t entry, enum segmap_state state, bool active)
{
	uint64_t known = segmap_normalised(entry);

	switch (state) {
	case SEGMAP_STATE_NO_WRITE:
		if (known == SEGMAP_INVALID_ENTRY) {
			return SEGMAP_INVALID_ENTRY;
		}
		return active ? known | SEGMAP_NO_WRITE : known & ~SEGMAP_NO_WRITE;
	case SEGMAP_STATE_ZERO:
		return known | SEGMAP_ZERO_ENTRY;
	case SEGMAP_STATE_ERROR:
		return known | SEGMAP_ERROR_ENTRY;
	default:
		return SEGMAP_INVALID_ENTRY;
	}
}
