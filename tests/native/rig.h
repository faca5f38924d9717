/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A data plane without threads around the C core: what a command does is appended to a log, in order.
 *
 * Commands and log are words (u64), so that one history can be run here and there: in a shared object that Python has
 * loaded, and in a program of its own under sanitizers. tests/native/rig.py knows both layouts.
 */
#ifndef SEGMAP_RIG_H
#define SEGMAP_RIG_H

#include <stdint.h>

struct rig;

struct rig *rig_open(uint64_t parked_max);
void rig_close(struct rig *rig);

/* Run one command: its number and arguments. */
void rig_run(struct rig *rig, const uint64_t *words);

/* What has been logged since the last call: (kind, number of words, words...) repeated. Valid until the next command. */
const uint64_t *rig_log(struct rig *rig, uint64_t *length);

#endif
