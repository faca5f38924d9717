"""Machines that are network namespaces on one bridge, and small file systems: what chaos needs to break, of the kernel.

All of it lives in namespaces of the process that made it (see `enclose`): networks, mounts and processes end with it,
whatever happens, and two runs never meet. Root is enough, and so are unprivileged user namespaces; without loop
devices there (they need real root) the small file systems are tmpfs, which cannot be frozen.

A one-way cut is a wrong Ethernet address in the sender's neighbour table: frames to it reach nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.cluster.cluster import Network

ENCLOSED: Final = "SEGMAP_CHAOS_ENCLOSED"
HOSTS: Final = "hosts"
NOBODY: Final = "02:00:00:00:00:fe"
BRIDGE: Final = "bridge0"
CARD: Final = "eth0"
BALLAST: Final = "ballast"
NAMESPACES: Final = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
INIT: Final = '"$@"; exit $?'
"""The first process in a pid namespace has to reap the orphans of all others, which a shell does."""


class NotPossible(Exception):
    """This machine does not let us make namespaces; the text says why."""


def run(*command: str) -> str:
    """A command that must succeed; what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise NotPossible(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def enclose(arguments: Sequence[str]) -> int | None:
    """Run `python arguments…` again with namespaces of its own; its exit status. None: we are enclosed already."""
    if os.environ.get(ENCLOSED):
        return None
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    try:
        if shutil.which("unshare") is None or shutil.which("nsenter") is None or shutil.which("ip") is None:
            raise NotPossible("unshare, nsenter and ip are needed (util-linux, iproute2)")
        run("unshare", *user, *NAMESPACES, "ip", "link", "set", "lo", "up")
    except (NotPossible, subprocess.TimeoutExpired) as error:
        raise NotPossible(f"no namespaces: {error}") from None
    command = ["unshare", *user, *NAMESPACES, "bash", "-c", INIT, "init", sys.executable, *arguments]
    return subprocess.run(command, env=os.environ | {ENCLOSED: "1"}, check=False).returncode


class Machines(Network):
    """Machines by name; we are the machine HOSTS."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = (HOSTS, *names)
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "address", self._card(HOSTS), "type", "bridge")
        run("ip", "addr", "add", f"{self.address(HOSTS)}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name in names:
            self._add(name)
        for one in self.names:
            for other in self.names:
                if one != other:
                    self._know(one, other, self._card(other))

    def close(self) -> None:
        """The networks go with their last processes."""
        for holder in self._holders.values():
            holder.kill()
            holder.communicate()

    def address(self, name: str) -> str:
        return f"10.77.0.{self.names.index(name) + 1}"

    def prefix(self, name: str) -> tuple[str, ...]:
        return () if name == HOSTS else ("nsenter", f"--net=/proc/{self._holders[name].pid}/ns/net", "--")

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing goes from `sender` to `receiver` any more."""
        self._know(sender, receiver, NOBODY)

    def heal(self, sender: str, receiver: str) -> None:
        """Undo `cut`."""
        self._know(sender, receiver, self._card(receiver))

    def _card(self, name: str) -> str:
        return f"02:00:00:00:00:{self.names.index(name) + 1:02x}"

    def _add(self, name: str) -> None:
        command = ["unshare", "--net", "sh", "-c", "echo there; exec sleep infinity"]
        holder = self._holders[name] = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise NotPossible("a second network namespace is refused")
        cable = f"to-{name}"[:15]
        peer = ("peer", "name", CARD, "address", self._card(name), "netns", str(holder.pid))
        run("ip", "link", "add", cable, "type", "veth", *peer)
        run("ip", "link", "set", cable, "master", BRIDGE, "up")
        inside = self.prefix(name)
        run(*inside, "ip", "addr", "add", f"{self.address(name)}/24", "dev", CARD)
        run(*inside, "ip", "link", "set", CARD, "up")
        run(*inside, "ip", "link", "set", "lo", "up")

    def _know(self, name: str, other: str, card: str) -> None:
        where = ("to", self.address(other), "lladdr", card, "nud", "permanent")
        run(*self.prefix(name), "ip", "neigh", "replace", *where, "dev", BRIDGE if name == HOSTS else CARD)


class SmallDisk:
    """A file system of `size_bytes` at `path`."""

    def __init__(self, path: Path, image: Path, size_bytes: int) -> None:
        self.path = path
        path.mkdir()
        try:
            with image.open("wb") as file:
                file.truncate(size_bytes)
            run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
            run("mount", "-o", "loop", str(image), str(path))
            self.freezes = shutil.which("fsfreeze") is not None
        except (NotPossible, FileNotFoundError):
            run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path))
            self.freezes = False

    def close(self) -> None:
        """Forget it."""
        run("umount", "--lazy", str(self.path))

    def freeze(self) -> None:
        """Writes and flushes wait from now on."""
        run("fsfreeze", "--freeze", str(self.path))

    def thaw(self) -> None:
        """Undo `freeze`."""
        run("fsfreeze", "--unfreeze", str(self.path))

    def fill(self) -> None:
        """Take all the space that is left."""
        descriptor = os.open(self.path / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for step in (1 << 20, 4096):
                zeroes = bytes(step)
                try:
                    while os.write(descriptor, zeroes):
                        pass
                except OSError:
                    continue
            os.fsync(descriptor)
        except OSError:
            pass  # it is full, which is what we want
        finally:
            os.close(descriptor)

    def empty(self) -> None:
        """Undo `fill`."""
        (self.path / BALLAST).unlink(missing_ok=True)
