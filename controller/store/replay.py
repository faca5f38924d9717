"""Replay: the log rows after the cursor, applied to the image and to the remembered requests."""

from __future__ import annotations

from array import array

from controller.store.image import MapImage
from controller.store.interface import REQUESTS_KEPT
from controller.store.records import apply


class Replay:
    """A target of map records: everything goes to `image`, requests are kept here."""

    def __init__(self, image: MapImage) -> None:
        self._requests: dict[int, array[int]] = {}
        self.set_entry = image.set_entry
        self.fill_entries = image.fill_entries
        self.put_entries = image.put_entries
        self.fill_segments = image.fill_segments
        self.fill_references = image.fill_references
        self.share_table = image.share_table
        self.drop_table = image.drop_table
        self.drop_container = image.drop_container

    def apply(self, records: bytes) -> None:
        """Apply packed records. Raises RecordError where they are malformed."""
        apply(records, self)

    def add_requests(self, incarnation: int, ids: bytes) -> None:
        """Requests that were folded before, as packed u64s."""
        self._requests.setdefault(incarnation, array("Q")).frombytes(ids)

    def request(self, incarnation: int, request_id: int) -> None:
        """A request of an incarnation."""
        try:
            self._requests[incarnation].append(request_id)
        except KeyError:
            self._requests[incarnation] = array("Q", [request_id])

    def forget_incarnation(self, incarnation: int) -> None:
        """Its requests are forgotten."""
        self._requests.pop(incarnation, None)

    def newest_requests(self) -> dict[int, dict[int, None]]:
        """Per incarnation the newest REQUESTS_KEPT ids, oldest first."""
        return {incarnation: dict.fromkeys(ids[-REQUESTS_KEPT:]) for incarnation, ids in self._requests.items()}
