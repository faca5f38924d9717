"""NVMe qualified names (Base Specification, 4.7): which strings are one, as strictly as SPDK is."""

from __future__ import annotations

import re
from typing import Final

from fabric.nvme_tcp.spec import DISCOVERY_NQN

NQN_BYTES_MIN: Final = 11
NQN_BYTES_MAX: Final = 223
_UUID_PREFIX: Final = "nqn.2014-08.org.nvmexpress:uuid:"
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LABEL: Final = r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME: Final = re.compile(rf"nqn\.[0-9]{{4}}-[0-9]{{2}}\.{_LABEL}(?:\.{_LABEL})*:.+", re.DOTALL)


def nqn_is_valid(name: str) -> bool:
    """True for the discovery name, a UUID name, or nqn.yyyy-mm.reverse.domain:anything."""
    if not NQN_BYTES_MIN <= len(name.encode(errors="surrogatepass")) <= NQN_BYTES_MAX:
        return False
    if name == DISCOVERY_NQN:
        return True
    if name.startswith(_UUID_PREFIX):
        return _UUID.fullmatch(name[len(_UUID_PREFIX) :]) is not None
    return _NAME.fullmatch(name) is not None
