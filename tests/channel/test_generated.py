"""The C header and the wire reference are made from the table: committed ones are current, and a compiler agrees."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from channel import c_header, generate
from channel.codec import decode, encode
from channel.messages import TABLE, FaultAnswer, Goodbye, MapFault
from channel.values import AnswerRecord, FaultRecord, Header, MessageType
from mapping.status import Status

TOP = Path(__file__).resolve().parents[2]
HEADER = TOP / "dataplane" / "bdev_segmap" / "segmap_wire.h"
COMMITTED = {"c-header": HEADER, "wire-reference": TOP / "docs" / "wire.md"}
COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Werror"]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "segmap_wire.h"

struct fault_frame {
    struct segmap_wire_header header;
    struct segmap_wire_map_fault body;
    struct segmap_wire_fault fault;
};

struct goodbye_frame {
    struct segmap_wire_header header;
    struct segmap_wire_goodbye body;
    char detail[8];
};

int main(void)
{
    struct fault_frame fault = {
        .header = { .length = sizeof(fault), .type = SEGMAP_WIRE_MAP_FAULT, .version = SEGMAP_WIRE_VERSION,
            .term = 1, .incarnation = 2, .epoch = 3 },
        .body = { .faults_count = 1 },
        .fault = { .fault_id = 4, .table = 5, .segment = 6, .entry = 7, .operation = SEGMAP_OPERATION_WRITE,
            .kind = SEGMAP_FAULT_WRITE, .state = SEGMAP_STATE_ZERO, .offset_blocks = 8, .length_blocks = 9 },
    };
    struct goodbye_frame goodbye = {
        .header = { .length = sizeof(goodbye), .type = SEGMAP_WIRE_GOODBYE, .version = SEGMAP_WIRE_VERSION },
        .body = { .status = SEGMAP_STATUS_STALE_TERM, .detail_length = 3 },
        .detail = "bye",
    };
    struct {
        struct segmap_wire_header header;
        struct segmap_wire_fault_answer body;
        struct segmap_wire_answer answer;
        uint64_t entry;
    } answer;

    fwrite(&fault, sizeof(fault), 1, stdout);
    fwrite(&goodbye, sizeof(goodbye), 1, stdout);
    if (fread(&answer, sizeof(answer), 1, stdin) != 1 || answer.header.length != sizeof(answer))
        return 1;
    if (answer.header.type != SEGMAP_WIRE_FAULT_ANSWER || answer.header.table != 5 || answer.header.sequence != 10)
        return 2;
    if (answer.body.answers_count != 1 || answer.body.entries_count != 1 || answer.answer.start != 6 ||
        answer.answer.action != SEGMAP_ANSWER_REPLACE || answer.entry != 0x100011)
        return 3;
    return 0;
}
"""


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_files_are_current(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMITTED[name].read_text() == generate.text(name), f"{COMMITTED[name]} is not current; run: make docs"
    assert generate.main([name]) == 0
    assert capsys.readouterr().out == generate.text(name)


def test_every_message_is_in_both() -> None:
    header, reference = generate.text("c-header"), generate.text("wire-reference")
    for row in TABLE:
        assert f"SEGMAP_WIRE_{row.kind.name} = {row.kind.value}," in header
        assert f"### {row.kind.name}\n" in reference
    for name, codec, _ in c_header.bodies():
        assert (f"struct {name} {{" in header) == bool(codec.places)


@needs_compiler
def test_a_c_program_and_the_codec_understand_each_other(tmp_path: Path) -> None:
    source, program = tmp_path / "wire.c", tmp_path / "wire"
    source.write_text(PROGRAM)
    command = [str(COMPILER), *FLAGS, f"-I{HEADER.parent}", "-o", str(program), str(source)]
    subprocess.run(command, check=True, timeout=60)
    answer = encode(FaultAnswer([AnswerRecord(4, 6, 1, 0, 0)], [0x100011]), Header(1, 2, 3, 5, 10))
    done = subprocess.run([str(program)], input=answer, capture_output=True, timeout=60)
    assert done.returncode == 0
    length = int.from_bytes(done.stdout[:4], "little")
    fault, goodbye = decode(done.stdout[:length]), decode(done.stdout[length:])
    assert fault.type is MessageType.MAP_FAULT and fault.header == Header(1, 2, 3)
    assert fault.message == MapFault([FaultRecord(4, 5, 6, 7, 1, 1, 2, 8, 9)])
    assert goodbye.message == Goodbye(Status.STALE_TERM, "bye")


@needs_compiler
def test_the_compiler_would_notice_another_layout(tmp_path: Path) -> None:
    wrong = HEADER.read_text().replace("\tuint8_t operation;", "\tuint16_t operation;", 1)
    assert wrong != HEADER.read_text()
    (tmp_path / "wrong.c").write_text(wrong)
    command = [str(COMPILER), "-std=c11", "-fsyntax-only", str(tmp_path / "wrong.c")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode != 0 and b"segmap_wire_fault" in done.stderr
