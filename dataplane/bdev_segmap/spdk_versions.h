/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Everything in which the SPDK releases that this module is built against (24.09 and later) differ for it.
 *
 * The module declares no memory domains and no accel sequences, in any release: the bdev layer then hands it plain
 * buffers, and nothing that changed there concerns it.
 */
#ifndef SEGMAP_SPDK_VERSIONS_H
#define SEGMAP_SPDK_VERSIONS_H

#include "spdk/version.h"

#if !defined(SPDK_VERSION) || SPDK_VERSION < SPDK_VERSION_NUM(24, 9, 0)
#error "segmap needs SPDK 24.09 or later"
#endif

#endif
