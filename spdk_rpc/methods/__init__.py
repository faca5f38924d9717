"""SPDK's methods that segmap calls, typed: one module for each of SPDK's own modules.

A function is named as its method without the module's prefix and returns a :class:`spdk_rpc.call.Call`. Parameters,
results and codes are SPDK's (schema/schema.yaml and the ``*_rpc.c`` files, 26.05 and 26.09); tests/contract holds every
target to them. Members of results that segmap does not use are not read.
"""
