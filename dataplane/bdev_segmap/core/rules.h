/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an entry does to an operation: the table of the patent's states ([0026]-[0030]), and the state commands ([0034]).
 */
#ifndef SEGMAP_RULES_H
#define SEGMAP_RULES_H

#include "entry.h"

#define SEGMAP_OPERATIONS 6u
#define SEGMAP_STATES 5u
#define SEGMAP_FAULT_KINDS 5u

/* What the data plane does with one part of an I/O. */
enum segmap_action {
	SEGMAP_ACTION_FORWARD = 0,
	SEGMAP_ACTION_RETURN_ZEROES = 1,
	SEGMAP_ACTION_COMPLETE = 2,
	SEGMAP_ACTION_FAULT = 3,
	SEGMAP_ACTION_FAIL = 4,
};

/* An action, and the kind of fault if it is FAULT. */
struct segmap_decision {
	uint8_t action;
	uint8_t kind;
};

extern const struct segmap_decision segmap_decisions[2][SEGMAP_STATES][SEGMAP_OPERATIONS];

/* `reclaims`: the part covers its whole segment, and the table has the RECLAIM attribute. */
static inline struct segmap_decision
segmap_decide(uint64_t entry, enum segmap_operation operation, bool reclaims)
{
	return segmap_decisions[reclaims ? 1 : 0][segmap_state_of(entry)][operation];
}

/* What the table says of most I/O: a read or write of an entry without any state. False: ask segmap_decide. */
static inline bool
segmap_goes_straight(uint64_t entry, enum segmap_operation operation)
{
	return (entry & SEGMAP_FLAGS) == SEGMAP_MAPPED && operation <= SEGMAP_OPERATION_WRITE;
}

/* True if the operation can change what a later read returns. */
static inline bool
segmap_is_write(enum segmap_operation operation)
{
	return operation != SEGMAP_OPERATION_READ && operation != SEGMAP_OPERATION_FLUSH;
}

/* True if a state command may do this [0034]: INVALID, ERROR and ZERO end only by a whole replacement entry. */
bool segmap_state_allowed(uint32_t state, bool active);

/* The entry after an allowed state command. */
uint64_t segmap_with_state(uint64_t entry, enum segmap_state state, bool active);

#endif
