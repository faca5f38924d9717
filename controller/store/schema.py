"""The store's SQL schema, its versions, and the way from one to the next.

The version is SQLite's user_version, the application id says that the file is ours. Each step runs from one version
to the next; all steps that a file needs are one transaction, so a crash leaves the old version or the new one.
A file of a newer version is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import apsw

from controller.store.interface import StoreCorrupt, StoreVersion

APPLICATION_ID: Final = 0x5E63A901

Step = Callable[[apsw.Connection], None]

_VERSION_1: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE log (
    sequence INTEGER PRIMARY KEY, batches BLOB NOT NULL, records BLOB NOT NULL, "check" INTEGER NOT NULL);
CREATE TABLE batches (last_sequence INTEGER PRIMARY KEY, pairs BLOB NOT NULL);
CREATE TABLE requests (
    incarnation BLOB NOT NULL, last_sequence INTEGER NOT NULL, ids BLOB NOT NULL,
    PRIMARY KEY (incarnation, last_sequence));
CREATE TABLE trees (
    kind INTEGER NOT NULL, key INTEGER NOT NULL, root INTEGER NOT NULL, level INTEGER NOT NULL,
    shared_at INTEGER NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, level INTEGER NOT NULL, birth INTEGER NOT NULL,
    encoding INTEGER NOT NULL, "check" INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE node_references (id INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE count_changes (id INTEGER PRIMARY KEY, delta INTEGER NOT NULL, nodes BLOB NOT NULL);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, progress INTEGER NOT NULL,
    total INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, detail BLOB NOT NULL);
INSERT OR IGNORE INTO meta VALUES
    ('term', 0), ('generation', 1), ('folded', 0), ('clock', 1), ('next_node', 1);
"""


def create_version_1(connection: apsw.Connection) -> None:
    """From nothing, or from a version 0 file (meta and objects only), to the first schema."""
    connection.execute(_VERSION_1)


STEPS: Final[tuple[Step, ...]] = (create_version_1,)
"""STEPS[n] leads from version n to n + 1."""


def migrate(connection: apsw.Connection, steps: Sequence[Step] = STEPS) -> int:
    """Bring the file to the newest version; returns the version it had.

    Raises StoreCorrupt if the file belongs to another program, StoreVersion if a newer release wrote it.
    """
    application = int(connection.pragma("application_id"))
    version = int(connection.pragma("user_version"))
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").get
    if application != APPLICATION_ID and not (application == 0 and empty):
        raise StoreCorrupt("the file is a database of another program, not a segmap store")
    if version > len(steps):
        raise StoreVersion(
            f"the store has version {version}, this release knows up to {len(steps)}: a newer one has written it."
            " Upgrade the controller, or restore a backup that this release has made"
        )
    if version == len(steps):
        return version
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            step(connection)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", len(steps))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return version
