"""`segmap io copy`: bytes between files, streams, block devices and NVMe/TCP namespaces, with a checksum."""
