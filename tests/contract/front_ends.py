"""Where targets under test export: on a port of 127.0.0.1 that nobody uses, nor takes for an outgoing connection."""

from __future__ import annotations

from spdk_rpc.exports import NvmeTcpFrontEnd
from transport.ports import Reservation

LOOPBACK = "127.0.0.1"


def free_front_end() -> NvmeTcpFrontEnd:
    reservation = Reservation(LOOPBACK)
    reservation.close()
    return NvmeTcpFrontEnd(LOOPBACK, reservation.port)
