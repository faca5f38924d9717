"""A command at the host, from submission to completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fabric.nvme_tcp.capsule import Sqe
from fabric.nvme_tcp.spec import CDW12_DEALLOCATE, CDW12_FUA, Opcode, status_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

PENDING: Final = -1


class HostCommand:
    """What to submit, and how it ended.

    opcode, nsid, slba, nlb (blocks, the real count): the I/O. data: what to write, or the writable buffer to read
    into; not to be touched until `done` is called, once, with this command. sqe: given instead, for everything but
    reads and writes. status: 0 or a spec.Status, maybe with DNR; result: the completion's command-specific dwords.
    """

    status: int = PENDING
    result: int = 0
    received: int = 0  # bytes read into `data`, or asked for by R2T
    deadline_ns: int | None = None
    cid: int = -1
    damaged: bool = False
    context: Any = None

    def __init__(
        self,
        opcode: int,
        nsid: int = 0,
        slba: int = 0,
        nlb: int = 0,
        data: Buffer | None = None,
        *,
        fua: bool = False,
        sqe: Sqe | None = None,
        done: Callable[[HostCommand], None] | None = None,
    ) -> None:
        self.opcode = opcode
        self.nsid = nsid
        self.slba = slba
        self.nlb = nlb
        self.data = None if data is None else memoryview(data).cast("B")
        self.fua = fua
        self.sqe = sqe
        self.done = done

    def begin_again(self) -> None:
        """As if it had never been submitted; only after it has ended."""
        self.status, self.result, self.received, self.damaged = PENDING, 0, 0, False

    @property
    def writes(self) -> bool:
        """Its data goes to the controller."""
        return self.opcode == Opcode.WRITE if self.sqe is None else self.sqe.takes_host_data

    def __repr__(self) -> str:
        ended = "pending" if self.status == PENDING else status_text(self.status)
        return f"<HostCommand {self.sqe or hex(self.opcode)} slba {self.slba} nlb {self.nlb}: {ended}>"


def flush(nsid: int, done: Callable[[HostCommand], None]) -> HostCommand:
    return HostCommand(Opcode.FLUSH, nsid, sqe=Sqe(Opcode.FLUSH, nsid), done=done)


def write_zeroes(
    nsid: int,
    slba: int,
    nlb: int,
    done: Callable[[HostCommand], None],
    *,
    fua: bool = False,
    deallocate: bool = False,
) -> HostCommand:
    """Zeroes in 1 to 65536 blocks; `deallocate`: the controller may unmap them."""
    bits = (CDW12_FUA if fua else 0) | (CDW12_DEALLOCATE if deallocate else 0)
    sqe = Sqe(Opcode.WRITE_ZEROES, nsid, slba & 0xFFFFFFFF, slba >> 32, nlb - 1 | bits)
    return HostCommand(Opcode.WRITE_ZEROES, nsid, slba, nlb, sqe=sqe, done=done)
