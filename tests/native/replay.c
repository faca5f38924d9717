/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs a recorded history on a rig: commands from standard input, each with its length in words before it, and the log
 * to standard output. The first word is the rig's parking limit.
 */
#include <stdio.h>

#include "rig.h"

#define WORDS_MAX 65536

int
main(void)
{
	static uint64_t words[WORDS_MAX];
	const uint64_t *log;
	struct rig *rig;
	uint64_t count;

	if (fread(&count, sizeof(count), 1, stdin) != 1) {
		return 1;
	}
	rig = rig_open(count);
	while (fread(&count, sizeof(count), 1, stdin) == 1) {
		if (count > WORDS_MAX || fread(words, sizeof(words[0]), count, stdin) != count) {
			return 1;
		}
		rig_run(rig, words);
		log = rig_log(rig, &count);
		if (fwrite(log, sizeof(log[0]), count, stdout) != count) {
			return 1;
		}
	}
	rig_close(rig);
	return 0;
}
