"""A command that a target connection is working on: handed to the owner, or waiting for its host data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.nvme_tcp.capsule import Sqe
    from fabric.nvme_tcp.subsystem import Namespace
    from fabric.nvme_tcp.target_connection import TargetConnection


class Command:
    """One command of a host, from its capsule to its completion.

    opcode, namespace, slba, nlb (blocks, the real count), offset, length (bytes): what to do; checked. data: what to
    write, valid until `connection.complete`. fua: durable before completion. deallocate: Write Zeroes may unmap.
    ranges: (first block, blocks) to deallocate. context: the owner's. The rest is the connection's.

    Rare fields are class attributes, so that making a command is cheap.
    """

    namespace: Namespace
    slba: int = 0
    nlb: int = 0
    offset: int = 0
    length: int = 0
    data: memoryview | None = None
    fua: bool = False
    deallocate: bool = False
    ranges: Sequence[tuple[int, int]] = ()
    context: Any = None

    sqe: Sqe | None = None  # of admin and fabrics commands
    owned: bool = False  # handed to the owner
    done: bool = False
    buffer: bytearray | None = None  # of the pool: host data requested by R2T
    lender: bytearray | None = None  # the receive buffer of which `data` is a view
    tag: int = 0  # TTAG, while host data is awaited
    requested: int = 0  # bytes of host data wanted
    received: int = 0
    damaged: bool = False  # a data digest was wrong

    def __init__(self, connection: TargetConnection, opcode: int, cid: int, nsid: int) -> None:
        self.connection = connection
        self.opcode = opcode
        self.cid = cid
        self.nsid = nsid

    def __repr__(self) -> str:
        return f"<Command opcode {self.opcode:02x}h cid {self.cid} nsid {self.nsid} slba {self.slba} nlb {self.nlb}>"
