"""Container labels: round trip, damage, and a container that is somebody else."""

from dataclasses import replace

import pytest

from mapping.label import LABEL_BYTES, Label, LabelError, decode

LABEL = Label(b"c" * 16, b"k" * 16, 3, 1 << 20, 1000)


def test_round_trip() -> None:
    data = LABEL.encode()
    assert len(data) == LABEL_BYTES
    assert decode(data + b"more") == LABEL


def test_blank_segments_have_no_label() -> None:
    with pytest.raises(LabelError, match="none here"):
        decode(bytes(LABEL_BYTES))


def test_every_damaged_byte_is_noticed() -> None:
    data = LABEL.encode()
    for position in range(84):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(LabelError):
            decode(bytes(damaged))


def test_truncated() -> None:
    with pytest.raises(LabelError, match="4095 bytes"):
        decode(LABEL.encode()[:-1])


@pytest.mark.parametrize(
    "change", [{"cluster": b"d" * 16}, {"container": b"l" * 16}, {"segment_size": 1 << 21}, {"segment_count": 999}]
)
def test_another_container_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(LabelError, match=next(iter(change))):
        LABEL.verify(replace(LABEL, **change))  # type: ignore[arg-type]


def test_an_older_store_refuses_a_newer_label() -> None:
    LABEL.verify(replace(LABEL, generation=2))
    with pytest.raises(LabelError, match="generation 4"):
        LABEL.verify(replace(LABEL, generation=4))
