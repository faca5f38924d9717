"""The demo's hosts: `segmap io copy` processes, run as one would type them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cli.command import CommandError
from cli.demo.story import Story
from cli.exit_codes import ExitCode
from cli.supervisor.child import segmap_command

COPY_TIMEOUT_S = 60.0


class Hosts:
    """Copies as host ``hostnqn``; each copy is a process of its own."""

    def __init__(self, story: Story, hostnqn: str) -> None:
        self._story = story
        self._hostnqn = hostnqn

    async def copy(
        self, source: str, destination: str, length: int | None = None, from_offset: int = 0, to_offset: int = 0
    ) -> dict[str, Any]:
        """What `io copy` reports: bytes, seconds, sha256; CommandError if it failed."""
        words = ["io", "copy", self._as_host(source), self._as_host(destination)]
        words += ["--length", str(length)] if length is not None else []
        words += ["--from-offset", str(from_offset)] if from_offset else []
        words += ["--to-offset", str(to_offset)] if to_offset else []
        self._story.ran(shown(words))
        code, text = await run([*words, "--json"])
        if code:
            raise CommandError(f"io copy ended with status {code}: {text.strip()[-500:]}", ExitCode.DIFFERENT)
        result: dict[str, Any] = json.loads(text)
        return result

    async def may_connect(self, url: str, hostnqn: str) -> bool:
        """Whether a host of another name gets to the disk."""
        code, _ = await run(["io", "copy", f"{url}&hostnqn={hostnqn}", "/dev/null", "--length", "4096", "--json"])
        return code == ExitCode.DONE

    def _as_host(self, endpoint: str) -> str:
        return f"{endpoint}&hostnqn={self._hostnqn}" if endpoint.startswith("nvme-") else endpoint


def shown(words: list[str]) -> list[str]:
    """The words with what is long and does not matter cut."""
    return [word.partition("&hostnqn=")[0] for word in words]


async def run(words: list[str]) -> tuple[int, str]:
    """(exit status, standard output or the error) of one `segmap` command; its progress goes to our standard error."""
    process = await asyncio.create_subprocess_exec(
        *segmap_command(*words), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), COPY_TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode()
