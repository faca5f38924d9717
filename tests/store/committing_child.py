"""Commits and folds without end, and says on its standard output what is durable; somebody will kill it."""

from __future__ import annotations

import sys

from controller.store.interface import Batch
from controller.store.records import RecordBuilder
from controller.store.sqlite import SqliteStore
from mapping.entry import pack


def main() -> None:
    path, first = sys.argv[1], int(sys.argv[2])
    store = SqliteStore.open(path)
    term = store.new_term()
    for number in range(first, first + 1_000_000):
        builder = RecordBuilder()
        for part in range(8):
            builder.set_entry(1, (number * 8 + part) * 37 % 50_000, pack(3, number * 8 + part))
        batches = [Batch(number * 2, builder.take(), puts=(("n", "last", number),)), Batch(number * 2 + 1)]
        store.commit(batches, term)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        for _ in range(number % 7):
            store.fold(64)


if __name__ == "__main__":
    main()
