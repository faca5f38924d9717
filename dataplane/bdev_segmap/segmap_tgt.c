/* SPDX-License-Identifier: BSD-3-Clause
 *
 * segmap_tgt: a SPDK target with the segmap bdev module. Everything else of SPDK that was built is linked too.
 */
#include "spdk/stdinc.h"

#include "spdk/event.h"

#include "vbdev_segmap_socket.h"

#define SOCKET_OPTION 1000

static const struct option options[] = {
	{ "dataplane-socket", required_argument, NULL, SOCKET_OPTION },
	{ NULL, 0, NULL, 0 },
};

static void
usage(void)
{
	printf("     --dataplane-socket <path>  the Unix socket on which the segmap agent is served\n");
}

static int
parse_option(int option, char *argument)
{
	if (option != SOCKET_OPTION) {
		return -EINVAL;
	}
	segmap_link_set_path(argument);
	return 0;
}

/*
 * What hosts write to their disks is none of the target's business: it must not look for partitions or volumes there,
 * nor wait for that (a new disk parks whatever is read from it until there is a lease).
 */
static int
leave_disks_alone(void)
{
	struct spdk_bdev_opts bdev_opts = { 0 };

	spdk_bdev_get_opts(&bdev_opts, sizeof(bdev_opts));
	bdev_opts.bdev_auto_examine = false;
	return spdk_bdev_set_opts(&bdev_opts);
}

/* Front ends wait for the I/O of their hosts before they end: none of it may wait for a controller then. */
static void
shut_down(void)
{
	segmap_stop();
	spdk_app_stop(0);
}

static void
started(void *ctx)
{
	(void)ctx;
}

int
main(int argc, char **argv)
{
	struct spdk_app_opts opts = { 0 };
	int rc;

	spdk_app_opts_init(&opts, sizeof(opts));
	opts.name = "segmap_tgt";
	opts.shutdown_cb = shut_down;
	rc = spdk_app_parse_args(argc, argv, &opts, "", options, parse_option, usage);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return rc == SPDK_APP_PARSE_ARGS_HELP ? 0 : 1;
	}
	rc = leave_disks_alone();
	if (rc != 0) {
		return 1;
	}
	rc = spdk_app_start(&opts, started, NULL);
	spdk_app_fini();
	return rc;
}
