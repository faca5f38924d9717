/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The label in segment 0 of every container: who the container is. The same bytes as in mapping/label.py.
 */
#ifndef SEGMAP_LABEL_H
#define SEGMAP_LABEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEGMAP_LABEL_BYTES 4096u

struct segmap_label {
	uint8_t cluster[16];
	uint8_t container[16];
	uint64_t generation; /* of the store that wrote it */
	uint64_t segment_size;
	uint64_t segment_count;
};

/* Fill SEGMAP_LABEL_BYTES. */
void segmap_label_encode(const struct segmap_label *label, uint8_t *data);

/* NULL, or why the SEGMAP_LABEL_BYTES of `data` are no label. */
const char *segmap_label_decode(const uint8_t *data, struct segmap_label *label);

/* NULL, or why `found` is not the wanted container of this cluster, cut the same way, and not newer. */
const char *segmap_label_verify(const struct segmap_label *wanted, const struct segmap_label *found);

#endif
