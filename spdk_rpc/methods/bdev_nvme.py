"""NVMe controllers as a source of bdevs: controller ``NAME`` with namespace n gives bdev ``NAMEnn``.

Attaching answers when the controller's namespaces are bdevs. Refusals: ``-EALREADY`` (the name is in use), ``-EEXIST``
(this host is connected to that subsystem already), ``-EIO`` (nobody there, no such subsystem, host not allowed).
"""

from __future__ import annotations

from dataclasses import dataclass

from spdk_rpc.call import Call, Node, read_texts, read_true, without_none


@dataclass(frozen=True, slots=True)
class Path:
    """One connection of a controller. ``state`` is SPDK's word: enabled, reconnect_is_delayed, resetting …"""

    state: str
    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str
    subnqn: str
    hostnqn: str
    cntlid: int


@dataclass(frozen=True, slots=True)
class Controller:
    name: str
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Reconnection:
    """How long a lost controller is tried again.

    All zero: SPDK's default, given up when the connection is lost. ``ctrlr_loss_timeout_sec`` -1: tried for ever; else
    it must be at least ``reconnect_delay_sec``. After ``fast_io_fail_timeout_sec`` I/O fails although the controller
    is still tried; 0: not before it is given up.
    """

    ctrlr_loss_timeout_sec: int = 0
    reconnect_delay_sec: int = 0
    fast_io_fail_timeout_sec: int = 0


def attach_controller(
    name: str,
    trtype: str,
    traddr: str,
    *,
    adrfam: str | None = None,
    trsvcid: str | None = None,
    subnqn: str | None = None,
    hostnqn: str | None = None,
    hdgst: bool = False,
    ddgst: bool = False,
    num_io_queues: int | None = None,
    reconnection: Reconnection | None = None,
    multipath: str = "disable",
) -> Call[tuple[str, ...]]:
    """``bdev_nvme_attach_controller``: the names of the bdevs.

    ``multipath`` is "disable" unless told: with SPDK's own default, an attach under a known name adds a path to it.
    """
    times = reconnection or Reconnection()
    params = without_none(
        name=name,
        trtype=trtype,
        traddr=traddr,
        adrfam=adrfam,
        trsvcid=trsvcid,
        subnqn=subnqn,
        hostnqn=hostnqn,
        hdgst=hdgst or None,
        ddgst=ddgst or None,
        num_io_queues=num_io_queues,
        ctrlr_loss_timeout_sec=times.ctrlr_loss_timeout_sec or None,
        reconnect_delay_sec=times.reconnect_delay_sec or None,
        fast_io_fail_timeout_sec=times.fast_io_fail_timeout_sec or None,
        multipath=multipath,
    )
    return Call("bdev_nvme_attach_controller", params, read_texts)


def detach_controller(name: str) -> Call[bool]:
    """``bdev_nvme_detach_controller``: all of its paths, and its bdevs; ``-ENODEV`` if there is none"""
    return Call("bdev_nvme_detach_controller", {"name": name}, read_true)


def get_controllers(name: str | None = None) -> Call[tuple[Controller, ...]]:
    """``bdev_nvme_get_controllers``: all, or the one of that name (``-EINVAL`` if there is none)"""
    return Call("bdev_nvme_get_controllers", without_none(name=name), lambda node: node.list(_read_controller))


def set_options(*, enable_flush: bool) -> Call[bool]:
    """``bdev_nvme_set_options``: the others stay; ``-EPERM`` while a controller is attached"""
    return Call("bdev_nvme_set_options", {"enable_flush": enable_flush}, read_true)


def _read_controller(node: Node) -> Controller:
    return Controller(node.text("name"), node.member("ctrlrs").list(_read_path))


def _read_path(node: Node) -> Path:
    trid = node.member("trid")
    return Path(
        state=node.text("state"),
        trtype=trid.text("trtype"),
        adrfam=trid.text("adrfam", ""),
        traddr=trid.text("traddr"),
        trsvcid=trid.text("trsvcid", ""),
        subnqn=trid.text("subnqn", ""),
        hostnqn=node.member("host").text("nqn", ""),
        cntlid=node.number("cntlid", 0),
    )
