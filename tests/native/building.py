"""Compiles the C core and the rig around it; the flags are those that the code has to stand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
MODULE: Final = TOP / "dataplane" / "bdev_segmap"
HERE: Final = Path(__file__).resolve().parent
CORE: Final = sorted((MODULE / "core").glob("*.c"))
WARNINGS: Final = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wpedantic", "-Werror"]
COMPILERS: Final = [path for path in (shutil.which("gcc"), shutil.which("clang")) if path is not None]
COMPILER: Final = COMPILERS[0] if COMPILERS else shutil.which("cc")
NO_COMPILER: Final = "no C compiler is installed"
SANITIZERS: Final = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]


def compile_c(compiler: str, output: Path, sources: list[Path], *flags: str) -> None:
    """Compile and link `sources`; a complaint of the compiler is the exception's text."""
    command = [compiler, *WARNINGS, *flags, f"-I{MODULE}", *map(str, sources), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def sanitizers_work(directory: Path) -> str:
    """Empty, or why programs under ASan and UBSan cannot be built and run here."""
    assert COMPILER is not None
    source, program = directory / "nothing.c", directory / "nothing"
    source.write_text("int main(void) { return 0; }\n")
    built = subprocess.run(
        [COMPILER, *SANITIZERS, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        return "the compiler has no sanitizers"
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else "programs under sanitizers do not run here"
