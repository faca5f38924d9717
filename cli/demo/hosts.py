"""The demo's hosts: `segmap io copy` processes, run as one would type them."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cli.command import CommandError
from cli.demo.story import Story
from cli.exit_codes import ExitCode
from cli.output import SIZE_STEPS
from cli.supervisor.child import segmap_command

COPY_TIMEOUT_S = 60.0


class Hosts:
    """Copies as host ``hostnqn``; each copy is a process of its own."""

    def __init__(self, story: Story, hostnqn: str) -> None:
        self._story = story
        self._hostnqn = hostnqn
        self._aliases: dict[str, str] = {}

    def alias(self, agent: str, url: str) -> str:
        """A short name for an address, as a shell variable; used wherever a command is shown."""
        self._aliases[url] = f"${agent.upper()}"
        return agent.upper()

    async def copy(
        self, source: str, destination: str, length: int | None = None, from_offset: int = 0, to_offset: int = 0
    ) -> dict[str, Any]:
        """What `io copy` reports: bytes, seconds, sha256; CommandError if it failed."""
        words = ["io", "copy", self._as_host(source), self._as_host(destination)]
        words += ["--length", size_word(length)] if length is not None else []
        words += ["--from-offset", size_word(from_offset)] if from_offset else []
        words += ["--to-offset", size_word(to_offset)] if to_offset else []
        self._story.ran([self._shown(word) for word in words])
        code, text = await run([*words, "--json"])
        if code:
            raise CommandError(f"io copy ended with status {code}: {text.strip()[-500:]}", ExitCode.DIFFERENT)
        result: dict[str, Any] = json.loads(text)
        return result

    async def may_connect(self, url: str, hostnqn: str) -> bool:
        """Whether a host of another name gets to the disk."""
        words = ["io", "copy", f"{url}&hostnqn={hostnqn}", os.devnull, "--length", "4096", "--json", "--quiet"]
        code, _ = await run(words, asyncio.subprocess.DEVNULL)
        return code == ExitCode.DONE

    def _shown(self, word: str) -> str:
        """A word of a command as one would type it: aliases for addresses, names for the demo's own files."""
        url = word.partition("&hostnqn=")[0]
        return self._aliases.get(url, Path(url).name if url.startswith(tempfile.gettempdir()) else url)

    def _as_host(self, endpoint: str) -> str:
        return f"{endpoint}&hostnqn={self._hostnqn}" if endpoint.startswith("nvme-") else endpoint


def size_word(size_bytes: int) -> str:
    """A size as an argument: exact, and as short as that allows."""
    for unit, name in SIZE_STEPS:
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return str(size_bytes)


async def run(words: list[str], errors: int | None = None) -> tuple[int, str]:
    """(exit status, standard output) of one `segmap` command; its progress goes to our standard error."""
    process = await asyncio.create_subprocess_exec(
        *segmap_command(*words), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), COPY_TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode()
