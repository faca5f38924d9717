/* SPDX-License-Identifier: BSD-3-Clause */
#include "label.h"

#include <assert.h>
#include <string.h>

#define MAGIC "SEGMAP-CONTAINER"
#define VERSION 1u

/* Little-endian, as the machines that this is built for. */
struct layout {
	uint8_t magic[16];
	uint32_t version;
	uint32_t reserved;
	uint64_t generation;
	uint64_t segment_size;
	uint64_t segment_count;
	uint8_t cluster[16];
	uint8_t container[16];
	uint32_t checksum; /* of all before it */
	uint32_t end;
};
static_assert(sizeof(struct layout) == 88 && offsetof(struct layout, checksum) == 80, "label");

/* CRC-32 of IEEE 802.3, bit by bit: eighty bytes now and then. */
static uint32_t
crc32(const uint8_t *data, size_t length)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < length; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++) {
			crc = crc >> 1 ^ (UINT32_C(0xedb88320) & (0u - (crc & 1)));
		}
	}
	return ~crc;
}

static uint32_t
checksum_of(const struct layout *layout)
{
	return crc32((const uint8_t *)layout, offsetof(struct layout, checksum));
}

void
segmap_label_encode(const struct segmap_label *label, uint8_t *data)
{
	struct layout layout = {
		.version = VERSION,
		.generation = label->generation,
		.segment_size = label->segment_size,
		.segment_count = label->segment_count,
	};

	memcpy(layout.magic, MAGIC, sizeof(layout.magic));
	memcpy(layout.cluster, label->cluster, sizeof(layout.cluster));
	memcpy(layout.container, label->container, sizeof(layout.container));
	layout.checksum = checksum_of(&layout);
	memset(data, 0, SEGMAP_LABEL_BYTES);
	memcpy(data, &layout, sizeof(layout));
}

const char *
segmap_label_decode(const uint8_t *data, struct segmap_label *label)
{
	struct layout layout;

	memcpy(&layout, data, sizeof(layout));
	if (memcmp(layout.magic, MAGIC, sizeof(layout.magic)) != 0) {
		return "container label: none here";
	}
	if (layout.checksum != checksum_of(&layout)) {
		return "container label: checksum differs, the label is damaged";
	}
	if (layout.version != VERSION) {
		return "container label: of another version than this program knows";
	}
	label->generation = layout.generation;
	label->segment_size = layout.segment_size;
	label->segment_count = layout.segment_count;
	memcpy(label->cluster, layout.cluster, sizeof(label->cluster));
	memcpy(label->container, layout.container, sizeof(label->container));
	return NULL;
}

const char *
segmap_label_verify(const struct segmap_label *wanted, const struct segmap_label *found)
{
	if (memcmp(wanted->cluster, found->cluster, sizeof(wanted->cluster)) != 0) {
		return "container label: of another cluster";
	}
	if (memcmp(wanted->container, found->container, sizeof(wanted->container)) != 0) {
		return "container label: of another container";
	}
	if (wanted->segment_size != found->segment_size) {
		return "container label: segment_size differs";
	}
	if (wanted->segment_count != found->segment_count) {
		return "container label: segment_count differs";
	}
	return found->generation > wanted->generation ? "container label: written by a newer store generation" : NULL;
}
