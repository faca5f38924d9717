"""`segmap up`: every process of a cluster on this machine, from one file, started, watched and ended together."""
