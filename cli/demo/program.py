"""The demo, chapter by chapter. It reads like what it shows; every claim it makes is a check.

Everything runs on loopback and ephemeral ports, below a temporary directory that is gone at the end, as is every
process. Exit status 0 means that every check held.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.command import API_VARIABLE, CommandError, Context
from cli.commands.maps import HOLDS, draw, read_runs
from cli.commands.vdisks import host_url
from cli.config.document import Document, load
from cli.demo.hosts import Hosts
from cli.demo.image import MIB, Image, build, check_ext4
from cli.demo.story import Story
from cli.exit_codes import ExitCode
from cli.map_view import totals
from cli.output import rate_text, size_text
from cli.supervisor.child import process_exists
from cli.supervisor.cluster import CONTROLLER, Cluster
from spdk_rpc.find import SpdkNotFound, find_segmap_tgt, find_spdk

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
VDISK = "demo"
VDISK_BYTES = 4 << 30
HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:5e9a0e0c-0000-4000-8000-00000000d3e0"
STRANGER = "nqn.2014-08.org.nvmexpress:uuid:5e9a0e0c-0000-4000-8000-000000bad001"
CONTROLLER_AWAY_S = 3.0
RECOVERY_S = 25.0
FAR_OFFSET = 2 << 30
NEW_SEGMENT_OFFSET = 3 << 30


class Demo:
    """The actors: a cluster, hosts that copy, and the story that is told."""

    def __init__(self, context: Context, workspace: Path) -> None:
        self.story = Story(context.output)
        self.output = context.output
        self.workspace = workspace
        self.source: Path | None = context.args.input
        self.keep: bool = context.args.keep
        document = on_targets(quickstart(workspace / "run"), context.args.target, context.args.containers)
        self.cluster = Cluster(document, self.story.say)
        self.hosts = Hosts(self.story, HOSTNQN)
        self.urls: dict[str, str] = {}
        self.seen_pids: set[int] = set()

    async def play(self) -> None:
        """All chapters, in order."""
        image = await self.make_image()
        await self.start_cluster(image)
        written = await self.write_image(image)
        await self.read_at_the_other_agent(image, written)
        await self.lose_a_data_plane(image, written)
        await self.lose_the_controller()
        if self.keep:
            await self.stay()

    async def make_image(self) -> Image:
        self.story.chapter("Data to put on a disk")
        image = await asyncio.to_thread(build, self.workspace, self.source)
        kind = "an ext4 image" if image.filesystem else "a tar archive (no mke2fs here)"
        self.story.say(f"{kind} of {size_text(image.length)} with {image.files} file{'s' if image.files != 1 else ''}")
        return image

    async def start_cluster(self, image: Image) -> None:
        """Chapter: one file, seven processes."""
        self.story.chapter("A controller, a container host and two mapping agents, from configs/quickstart.yaml")
        self.cluster.document = with_room(self.cluster.document, image.length)
        await self.cluster.start()
        self.output.table(("process", "pid", "address", "purpose"), self.cluster.rows())
        self.remember_pids()
        for container in (await self.cluster.call("container.list"))["containers"]:
            size = size_text(container["size_bytes"])
            export = f"{container['exporter']}/{container['export']}"
            self.story.say(f"container {container['name']}: {size}, slot {container['slot']}, export {export}")

    async def write_image(self, image: Image) -> dict[str, Any]:
        """Chapter: a thin disk, written through agent A."""
        size = max(VDISK_BYTES, image.length * 2)
        self.story.chapter(
            f"A thin vdisk of {size_text(size)}, shown at both agents; the image goes in through agent A"
        )
        self.story.ran(["vdisk", "create", VDISK, "--size", size_text(size).replace(" ", "")])
        vdisk = await self.cluster.call("vdisk.create", name=VDISK, size_bytes=size)
        self.story.check("nothing is allocated yet", vdisk["allocated_segments"] == 0)
        self.story.ran(["vdisk", "present", VDISK, "--agent", "a", "--agent", "b", "--host", "NQN"])
        await self.cluster.call("vdisk.present", name=VDISK, agents=["a", "b"], hosts=[HOSTNQN])
        await self.cluster.until(lambda: self.presented("a", "b"), RECOVERY_S, CONTROLLER)
        for agent, url in self.urls.items():
            self.story.say(f"{self.hosts.alias(agent, url)}={url}")
        containers = (await self.cluster.call("container.list"))["containers"]
        attached = all({"a", "b"} <= set(container["attached_at"]) for container in containers)
        self.story.check("both agents have attached both containers over NVMe/TCP", len(containers) == 2 and attached)
        refused = not await self.hosts.may_connect(self.urls["a"], STRANGER)
        self.story.check("a host that is not on the list is refused", refused)
        before = await self.faults()
        written = await self.hosts.copy(str(image.path), self.urls["a"])
        faults = await self.faults() - before
        await self.draw_map()
        segments = (await self.cluster.call("vdisk.show", name=VDISK))["allocated_segments"]
        rate = rate_text(written["bytes"], written["seconds"])
        per_second = faults / max(written["seconds"], 1e-9)
        told = f"{faults} faults ({per_second:.0f}/s) mapped {segments} segments"
        self.story.say(f"{size_text(written['bytes'])} at {rate}; {told}")
        self.story.check("every byte was written", written["bytes"] == image.length)
        self.story.check("faults made the allocation", faults > 0 and image.length <= segments * MIB < size)
        return written

    async def read_at_the_other_agent(self, image: Image, written: dict[str, Any]) -> None:
        """Chapter: the same disk, elsewhere."""
        self.story.chapter("The same disk through agent B")
        copy = self.workspace / "copy"
        read = await self.hosts.copy(self.urls["b"], str(copy), image.length)
        self.compare(written, read)
        self.story.say(f"read at {rate_text(read['bytes'], read['seconds'])}")
        if image.filesystem:
            good, line = await asyncio.to_thread(check_ext4, copy)
            self.story.check("e2fsck -fn finds the file system whole", good, line)
        copy.unlink()

    async def lose_a_data_plane(self, image: Image, written: dict[str, Any]) -> None:
        """Chapter: volatile tables."""
        self.story.chapter("Agent A's data plane is killed: its table is gone, and refills by faults")
        victim = self.cluster.target_pid("a")
        incarnation = (await self.cluster.call("agent.show", agent="a"))["incarnation"]
        kill(victim)
        self.story.say(f"kill -9 {victim}")
        await self.cluster.until(lambda: self.back("a", incarnation), RECOVERY_S, "agent a")
        self.remember_pids()
        now = (await self.cluster.call("agent.show", agent="a"))["incarnation"]
        self.story.check("it is back as another incarnation", now > incarnation, f"{incarnation} -> {now}")
        empty = await self.draw_map("a")
        self.story.check("its new table knows nothing", empty["known"] == 0)
        before = await self.faults()
        await self.hosts.copy(self.urls["a"], os.devnull, MIB, from_offset=FAR_OFFSET)
        some = await self.draw_map("a")
        read = await self.hosts.copy(self.urls["a"], os.devnull, image.length)
        more = await self.draw_map("a")
        faults = await self.faults() - before
        refilled = 0 < some["known"] < more["known"] and more["mapped"] >= image.length // MIB
        self.story.check("faults refilled it", refilled and faults > 0, f"{faults} faults")
        self.compare(written, read)

    async def lose_the_controller(self) -> None:
        """Chapter: no controller in the way of I/O."""
        lease_s = self.cluster.document.controller["lease"] / 1e9
        self.story.chapter(f"The controller is killed for {CONTROLLER_AWAY_S:g} s (the lease is {lease_s:g} s)")
        piece = self.workspace / "piece"
        piece.write_bytes(b"segmap" * (MIB // 6) + b"segm")
        await self.hosts.copy(str(piece), self.urls["a"], MIB)
        controller = self.cluster.children[CONTROLLER]
        await controller.kill()
        killed_at = self.story.seconds
        self.story.say("kill -9 of the controller; now only the data planes work")
        again = await self.hosts.copy(str(piece), self.urls["a"], MIB)
        read = await self.hosts.copy(self.urls["a"], os.devnull, MIB)
        in_time = self.story.seconds - killed_at < lease_s and controller.pid == 0
        same = again["sha256"] == read["sha256"]
        self.story.check("reads and writes of loaded segments go on without a controller", same and in_time)
        await asyncio.sleep(max(0.0, killed_at + CONTROLLER_AWAY_S - self.story.seconds))
        controller.revive()
        await self.cluster.until(self.cluster.controller_answers, RECOVERY_S, CONTROLLER)
        self.story.say("the controller is back")
        before = (await self.cluster.call("vdisk.show", name=VDISK))["allocated_segments"]
        new = await self.hosts.copy(str(piece), self.urls["a"], MIB, to_offset=NEW_SEGMENT_OFFSET)
        after = (await self.cluster.call("vdisk.show", name=VDISK))["allocated_segments"]
        self.story.check("a write to a new segment succeeds and allocates", new["bytes"] == MIB and after > before)
        other = await self.hosts.copy(self.urls["b"], os.devnull, MIB, from_offset=NEW_SEGMENT_OFFSET)
        self.story.check("agent B reads it", other["sha256"] == new["sha256"])
        await self.explain(NEW_SEGMENT_OFFSET + 4096)
        self.remember_pids()

    async def stay(self) -> None:
        self.story.say(f"\n   export {API_VARIABLE}={self.cluster.document.api_socket}\n   segmap status\n")
        for agent, url in self.urls.items():
            self.story.say(f"agent {agent}: {url}")
        self.story.say("Ctrl-C ends everything.")
        await asyncio.Event().wait()

    async def finish(self) -> None:
        """Ends every process, removes every file, and checks both."""
        self.remember_pids()
        await self.cluster.stop()
        left = [pid for pid in self.seen_pids if process_exists(pid)]
        shutil.rmtree(self.workspace, ignore_errors=True)
        self.story.chapter("The end")
        self.story.check("nothing is left running", not left, ", ".join(str(pid) for pid in left))
        self.story.check("no file is left behind", not self.workspace.exists())

    # --- what chapters need ----------------------------------------------------------------------------------------

    async def presented(self, *agents: str) -> bool:
        """Whether the vdisk can be reached at these agents; notes where."""
        vdisk = await self.cluster.call("vdisk.show", name=VDISK)
        for item in vdisk["presentations"]:
            if item["state"] == "presented" and host_url(item):
                self.urls[item["agent"]] = host_url(item)
            else:
                self.urls.pop(item["agent"], None)
        return set(agents) <= self.urls.keys()

    async def back(self, agent: str, incarnation: int) -> bool:
        """Whether an agent's data plane is admitted anew and presents the disk again."""
        shown = await self.cluster.call("agent.show", agent=agent)
        return shown["state"] == "admitted" and shown["incarnation"] > incarnation and await self.presented(agent)

    async def faults(self) -> int:
        answer: int = (await self.cluster.call("cluster.status"))["faults"]["received"]
        return answer

    async def draw_map(self, agent: str = "") -> dict[str, int]:
        """Prints the table's picture, and counts its segments by state."""
        self.story.ran(["vdisk", "map", VDISK, *(["--agent", agent] if agent else [])])
        runs, answer = await asyncio.to_thread(read_runs, self.cluster.client, VDISK, agent, 0, 0)
        draw(self.output, runs, answer["start"], answer["count"], MIB)
        counted = totals(runs)
        mapped = counted["mapped"] + counted["no-write"]
        return {"mapped": mapped, "known": mapped + counted["zero"]}

    async def explain(self, offset: int) -> None:
        self.story.ran(["vdisk", "explain", VDISK, str(offset)])
        fact = await self.cluster.call("vdisk.explain", name=VDISK, offset=offset)
        holders = ", ".join(f"{holder['agent']} {HOLDS[holder['holds']]}" for holder in fact["holders"])
        where = f"{fact['container']}, segment {fact['physical_segment']}, byte {fact['container_offset']}"
        self.story.say(f"byte {offset} is in segment {fact['segment']} ({fact['state']}), at {where}; {holders}")

    def compare(self, written: dict[str, Any], read: dict[str, Any]) -> None:
        self.story.say(f"written {written['sha256']}")
        self.story.say(f"read    {read['sha256']}")
        self.story.check("the SHA-256 match", written["sha256"] == read["sha256"] and written["bytes"] == read["bytes"])

    def remember_pids(self) -> None:
        self.seen_pids |= {child.pid for child in self.cluster.children.values()}
        self.seen_pids |= {self.cluster.target_pid(agent["name"]) for agent in self.cluster.document.agents}
        self.seen_pids.discard(0)


def quickstart(runtime_dir: Path) -> Document:
    return load(QUICKSTART, runtime_dir)


def on_targets(document: Document, mappers: str, exporters: str) -> Document:
    """The same cluster with targets embedded or spdk. SPDK's poll, each on the next core that we have."""
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
    agents = []
    for agent in document.agents:
        kind = mappers if "mapper" in agent["roles"] else exporters
        options = {**agent["spdk"], "core_locks": False}
        if kind == "spdk":
            options["cores"] = f"[{next(cores)}]"
        agents.append({**agent, "target": kind, "spdk": options})
    return replace(document, values={**document.values, "agents": agents})


def missing(mappers: str, exporters: str) -> str:
    """What the wanted targets lack on this machine, and what to do; empty if nothing."""
    try:
        if "spdk" in (mappers, exporters):
            find_spdk()
        if mappers == "spdk":
            find_segmap_tgt()
    except SpdkNotFound as error:
        return str(error)
    return ""


def with_room(document: Document, length: int) -> Document:
    """The same cluster with an AIO container that a long image fits into."""
    agents = [
        {**agent, "exports": [grown(export, length * 2) for export in agent["exports"]]} for agent in document.agents
    ]
    return replace(document, values={**document.values, "agents": agents})


def grown(export: dict[str, Any], size: int) -> dict[str, Any]:
    return {**export, "size": max(export["size"], size)} if export["kind"] == "aio" else export


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def perform(demo: Demo) -> None:
    """The play, ended by a signal or by itself; the stage is always cleared."""
    task = asyncio.ensure_future(demo.play())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    finally:
        await demo.finish()


def run(context: Context) -> int:
    """The demo's command."""
    lack = missing(context.args.target, context.args.containers)
    if lack:
        raise CommandError(f"the demo on SPDK: {lack}", ExitCode.FAILED)
    workspace = Path(tempfile.mkdtemp(prefix="segmap-demo-"))
    demo = Demo(context, workspace)
    interrupted = False
    try:
        asyncio.run(perform(demo))
    except asyncio.CancelledError:
        interrupted = not demo.keep
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    story = demo.story
    context.output.document({"seconds": round(story.seconds, 1), "checks": dict(story.checks)})
    summary = f"{len(story.checks) - len(story.failed)} of {len(story.checks)} checks held, {story.seconds:.1f} s"
    context.output.line(f"\n{summary}", "bold red" if story.failed else "bold green")
    if interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.DIFFERENT if story.failed else ExitCode.DONE
