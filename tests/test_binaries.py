"""What is installed: the files of the wheel, and what each library and program exports, needs and does at load."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

import tensor_fusion
from tensor_fusion.abi import native_folder

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ("client/libcuda.so.1", "client/libnvidia-ml.so.1", "client/libteleport.so.1")
PROGRAMS = tuple(f"bin/tensor-fusion-{name}" for name in ("session", "bench", "onefile"))
BINARIES = (*CLIENT, *PROGRAMS, "lib/libtf-simgpu.so")
LIBC = {"libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6", "ld-linux-x86-64.so.2"}
# The client goes into programs of strangers' systems, wherever it was built: CentOS 7 has 2.17, the spec's guest 2.28.
HIGHEST_GLIBC_OF_CLIENT = (2, 17)
# The rest runs where it was built. On Ubuntu 24.04 it needs 2.38, whose headers turn strtoul into __isoc23_strtoul.
HIGHEST_GLIBC = (2, 38)


def read(name: str) -> ELFFile:
    return ELFFile((native_folder() / name).open("rb"))


def tags(elf: ELFFile) -> list[Any]:
    dynamic: Any = elf.get_section_by_name(".dynamic")
    return list(dynamic.iter_tags())


def exports(elf: ELFFile) -> set[str]:
    table: Any = elf.get_section_by_name(".dynsym")
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF"
        and symbol["st_info"]["bind"] != "STB_LOCAL"
        # The ends of a list (tp_register.h) are in the table, hidden from everybody.
        and symbol["st_other"]["visibility"] != "STV_HIDDEN"
    }


@pytest.mark.parametrize("name", BINARIES)
def test_needs_libc_only(name: str) -> None:
    needed = {tag.needed for tag in tags(read(name)) if tag.entry.d_tag == "DT_NEEDED"}
    # Not even each other: a library of exports finds libteleport at its first call, or a program could not start.
    # A session or simulated GPU under sanitizers needs their libraries, too: they are of the same compiler.
    sanitizers = {entry for entry in needed if re.match(r"lib(asan|ubsan|gcc_s)\.so", entry)}
    assert needed <= LIBC | (sanitizers if name not in CLIENT else set())


def glibc_versions(name: str) -> list[tuple[int, ...]]:
    section: Any = read(name).get_section_by_name(".gnu.version_r")
    versions = {version.name for _, entries in section.iter_versions() for version in entries}
    return [tuple(map(int, number.split(".")[:2])) for number in re.findall(r"GLIBC_([0-9.]+)", " ".join(versions))]


@pytest.mark.parametrize("name", BINARIES)
def test_c_library_need_not_be_the_newest(name: str) -> None:
    found = glibc_versions(name)
    assert found
    assert max(found) <= (HIGHEST_GLIBC_OF_CLIENT if name in CLIENT else HIGHEST_GLIBC)


@pytest.mark.parametrize("name", CLIENT)
def test_nothing_runs_at_load(name: str) -> None:
    """One entry is the C runtime's own (frame_dummy); a constructor of ours would be a second."""
    elf = read(name)
    for section in (".init_array", ".fini_array", ".ctors", ".preinit_array"):
        found = elf.get_section_by_name(section)
        assert found is None or found["sh_size"] <= 8, section


@pytest.mark.parametrize("name", BINARIES)
def test_memory_is_not_executable_and_writable(name: str) -> None:
    elf = read(name)
    segments = list(elf.iter_segments())
    stack = [segment for segment in segments if segment["p_type"] == "PT_GNU_STACK"]
    assert len(stack) == 1
    assert not [segment for segment in segments if segment["p_flags"] & 1 and segment["p_flags"] & 2]
    assert not [tag for tag in tags(elf) if tag.entry.d_tag == "DT_TEXTREL"]


@pytest.mark.parametrize("name", CLIENT)
def test_client_is_bound_at_load_and_stays(name: str) -> None:
    elf = read(name)
    assert any(segment["p_type"] == "PT_GNU_RELRO" for segment in elf.iter_segments())
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in tags(elf)}
    assert flags.get("DT_FLAGS_1", 0) & 0x1, "not bound at load (DF_1_NOW)"
    assert flags.get("DT_FLAGS_1", 0) & 0x8, "may be unloaded under its threads (DF_1_NODELETE)"
    assert not {"DT_RPATH", "DT_RUNPATH"} & set(flags)


def test_teleport_exports_its_own_names() -> None:
    names = exports(read(CLIENT[2]))
    assert names
    assert not [name for name in names if not re.match(r"tp_|tpg_", name)]


@pytest.mark.parametrize("name", BINARIES)
def test_no_path_of_the_building_machine(name: str) -> None:
    elf = read(name)
    if elf.get_section_by_name(".debug_info"):
        pytest.skip("built for debugging: installed files are stripped")
    image = (native_folder() / name).read_bytes()
    assert str(ROOT).encode() + b"/" not in image


# The wheel


@pytest.fixture(scope="module")
def wheel() -> importlib.metadata.Distribution:
    try:
        found = importlib.metadata.distribution("tensor-fusion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    if Path(str(found.locate_file("tensor_fusion"))).resolve() != Path(tensor_fusion.__file__).parent:
        pytest.skip("the package that is tested is not the installed one")
    return found


def test_wheel_is_for_every_python_and_says_for_which_c_library(wheel: importlib.metadata.Distribution) -> None:
    text = wheel.read_text("WHEEL") or ""
    newest = max(max(glibc_versions(name)) for name in BINARIES)
    tags = {f"py3-none-manylinux_{newest[0]}_{newest[1]}_x86_64"}
    tags |= {"py3-none-manylinux2014_x86_64"} if newest == (2, 17) else set()
    assert set(re.findall(r"^Tag: (.*)$", text, flags=re.MULTILINE)) == tags


def test_wheel_holds_what_it_should(wheel: importlib.metadata.Distribution) -> None:
    files = {str(path) for path in wheel.files or () if "__pycache__" not in str(path)}
    inside = {path.removeprefix("tensor_fusion/") for path in files if path.startswith("tensor_fusion/")}
    native = {path.removeprefix("_native/") for path in inside if path.startswith("_native/")}
    assert native == {*BINARIES, "coverage.json", "schema.json", "kernels.ptx"}
    sources = {str(path.relative_to(ROOT / "src/tensor_fusion")) for path in (ROOT / "src/tensor_fusion").rglob("*.py")}
    assert {path for path in inside - sources if not path.startswith("_native/")} <= {"py.typed"}
    assert sources <= inside
    commands = {Path(path).name for path in files if "/bin/" in path and not path.startswith("tensor_fusion/")}
    assert commands == {"tensor-fusion", "tensor-fusion-worker"}
    assert any(path.endswith("LICENSE") for path in files)


def test_wheel_has_no_toolkit_among_its_needs(wheel: importlib.metadata.Distribution) -> None:
    needs = {re.split(r"[^a-z0-9-]", need.lower())[0] for need in wheel.requires or () if "extra ==" not in need}
    assert needs == {"typer", "rich"}
