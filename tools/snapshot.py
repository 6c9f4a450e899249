"""Write api/snapshot/*.json from the header wheels on PyPI.

Run by a maintainer when NVIDIA publishes new headers, never by the build:

    pip install libclang==18.1.1
    pip download --no-deps -d wheels nvidia-cuda-runtime==13.0.96 nvidia-nvml-dev==13.5.37
    python tools/snapshot.py wheels

The snapshot holds names, types, values and layouts; no comment and no line of the headers is copied.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from clang import cindex

ROOT = Path(__file__).resolve().parent.parent

# The interop headers name types of other projects; opaque stand-ins of the same size are enough for prototypes.
STAND_INS = {
    "GL/gl.h": "typedef unsigned int GLuint; typedef unsigned int GLenum;",
    "EGL/egl.h": "typedef int EGLint; typedef void *EGLSyncKHR;",
    "EGL/eglext.h": "typedef void *EGLStreamKHR; typedef void *EGLImageKHR;",
    "vdpau/vdpau.h": (
        "typedef unsigned int VdpDevice; typedef unsigned int VdpStatus; typedef unsigned int VdpFuncId;"
        "typedef unsigned int VdpVideoSurface; typedef unsigned int VdpOutputSurface;"
        "typedef VdpStatus VdpGetProcAddress(VdpDevice, VdpFuncId, void **);"
    ),
}
CUDA_SOURCE = """
#define __CUDA_API_VERSION_INTERNAL 1
#include <cuda.h>
#include <cudaProfiler.h>
#include <cudaGL.h>
#include <cudaEGL.h>
#include <vdpau/vdpau.h>
#include <cudaVDPAU.h>
"""
PROFILER = (
    "#include <cuda.h>\ntypedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;\n"
    "CUresult cuProfilerInitialize(const char *configFile, const char *outputFile, CUoutput_mode outputMode);\n"
    "CUresult cuProfilerStart(void); CUresult cuProfilerStop(void);\n"
)
NVML_SOURCE = """
#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include <nvml.h>
"""
ANONYMOUS = re.compile(r"\((unnamed|anonymous)")


class Snapshot:
    """Declarations of one translation unit, in source order."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.types: list[dict[str, Any]] = []
        self.functions: dict[str, dict[str, Any]] = {}
        self.constants: dict[str, int] = {}
        self.pointers: dict[str, list[Any]] = {}
        self._seen: set[str] = set()

    def read(self, unit: cindex.TranslationUnit) -> None:
        kinds = cindex.CursorKind
        for cursor in unit.cursor.get_children():
            if cursor.location.file is None:
                continue
            if cursor.location.file.name.startswith("/usr/"):
                continue
            if cursor.kind == kinds.TYPEDEF_DECL:
                self._typedef(cursor)
            elif cursor.kind in (kinds.STRUCT_DECL, kinds.UNION_DECL) and cursor.is_definition():
                if not ANONYMOUS.search(cursor.type.spelling) and cursor.spelling:
                    self._record(cursor, f"{_word(cursor)} {cursor.spelling}")
            elif cursor.kind == kinds.ENUM_DECL and cursor.is_definition():
                self._enum(cursor)
            elif cursor.kind == kinds.FUNCTION_DECL and cursor.spelling.startswith(self.prefix):
                self._function(cursor)
        for cursor in unit.cursor.get_children():
            if cursor.kind == kinds.MACRO_DEFINITION:
                self._macro(cursor)

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.types.append(entry)

    def _typedef(self, cursor: cindex.Cursor) -> None:
        under = cursor.underlying_typedef_type
        decl = under.get_declaration()
        anonymous = bool(ANONYMOUS.search(under.spelling)) or (decl.spelling == cursor.spelling and not decl.spelling)
        if decl.kind in (cindex.CursorKind.STRUCT_DECL, cindex.CursorKind.UNION_DECL) and under.kind in (
            cindex.TypeKind.ELABORATED,
            cindex.TypeKind.RECORD,
        ):
            tagless = anonymous or under.spelling == cursor.spelling
            if tagless:
                self._record(decl, cursor.spelling, typedef=True)
                return
        if decl.kind == cindex.CursorKind.ENUM_DECL and (anonymous or under.spelling == cursor.spelling):
            self._enum(decl, cursor.spelling)
            return
        self._add(
            "t:" + cursor.spelling,
            {"kind": "typedef", "name": cursor.spelling, "type": _declare(under, cursor.spelling)},
        )

    def _enum(self, cursor: cindex.Cursor, typedef: str | None = None) -> None:
        name = typedef or ("" if ANONYMOUS.search(cursor.type.spelling) else f"enum {cursor.spelling}")
        values = [[c.spelling, c.enum_value] for c in cursor.get_children() if c.kind.name == "ENUM_CONSTANT_DECL"]
        if values:
            self._add("e:" + values[0][0], {"kind": "enum", "name": name, "values": values})

    def _record(self, cursor: cindex.Cursor, name: str, typedef: bool = False) -> None:
        entry = {
            "kind": _word(cursor),
            "name": name,
            "size": cursor.type.get_size(),
            "align": cursor.type.get_align(),
            "fields": _fields(cursor),
        }
        if typedef:
            entry["typedef"] = True
        self._add("r:" + name, entry)

    def _function(self, cursor: cindex.Cursor) -> None:
        params = []
        for index, arg in enumerate(cursor.get_arguments()):
            params.append({"name": arg.spelling or f"arg{index}", "type": arg.type.spelling})
        self.functions[cursor.spelling] = {"returns": cursor.result_type.spelling, "params": params}

    def _macro(self, cursor: cindex.Cursor) -> None:
        if not re.match(r"(CU|CUDA|NVML)_[A-Z0-9_]+$", cursor.spelling):
            return
        tokens = [t.spelling for t in cursor.get_tokens()][1:]
        text = "".join(t.rstrip("uUlL") if re.match(r"^(0x)?[0-9a-fA-F]+[uUlL]*$", t) else t for t in tokens)
        cast = re.fullmatch(r"\(\((void|CU[A-Za-z]+)\*?\)(\w+)\)", text)
        if cast:
            value = cast[2] if cast[2][0].isdigit() else str(self.constants.get(cast[2], ""))
            if value:
                kind = "void *" if cast[1] == "void" else cast[1]
                self.pointers[cursor.spelling] = [kind, int(value, 0)]
        elif text and re.fullmatch(r"[-0-9a-fA-Fx()<|+* ]+", text):
            try:
                self.constants[cursor.spelling] = int(eval(text, {"__builtins__": {}}))  # digits and operators only
            except (SyntaxError, ValueError, TypeError, NameError):
                return

    def as_json(self, source: dict[str, str]) -> dict[str, Any]:
        return {
            "source": source,
            "constants": dict(sorted(self.constants.items())),
            "pointers": dict(sorted(self.pointers.items())),
            "types": self.types,
            "functions": dict(sorted(self.functions.items())),
        }


def _word(cursor: cindex.Cursor) -> str:
    return "union" if cursor.kind == cindex.CursorKind.UNION_DECL else "struct"


def _declare(kind: cindex.Type, name: str) -> str:
    """C declaration of `name` with type `kind`, for example "void (*name)(int)"."""
    canonical = kind
    if kind.kind == cindex.TypeKind.CONSTANTARRAY:
        return _declare(kind.element_type, f"{name}[{kind.element_count}]")
    if kind.kind == cindex.TypeKind.POINTER and kind.get_pointee().kind in (
        cindex.TypeKind.FUNCTIONPROTO,
        cindex.TypeKind.FUNCTIONNOPROTO,
    ):
        function = kind.get_pointee()
        args = ", ".join(a.spelling for a in function.argument_types()) or "void"
        return f"{function.get_result().spelling} (*{name})({args})"
    if kind.kind == cindex.TypeKind.POINTER and kind.get_pointee().kind == cindex.TypeKind.UNEXPOSED:
        return canonical.spelling.replace("(*)", f"(*{name})")
    if kind.kind == cindex.TypeKind.FUNCTIONPROTO:
        args = ", ".join(a.spelling for a in kind.argument_types()) or "void"
        return f"{kind.get_result().spelling} {name}({args})"
    if "(*)" in kind.spelling:
        return kind.spelling.replace("(*)", f"(*{name})")
    return f"{kind.spelling} {name}" if name else kind.spelling


def _fields(cursor: cindex.Cursor) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    for child in cursor.type.get_fields():
        decl = child.type.get_declaration()
        name = "" if ANONYMOUS.search(child.spelling) else child.spelling
        entry: dict[str, Any] = {"name": name, "offset": child.get_field_offsetof()}
        element, dims = child.type, ""
        while element.kind == cindex.TypeKind.CONSTANTARRAY:
            dims += f"[{element.element_count}]"
            element = element.element_type
        decl = element.get_declaration()
        anonymous = bool(ANONYMOUS.search(element.spelling))
        if decl.kind in (cindex.CursorKind.STRUCT_DECL, cindex.CursorKind.UNION_DECL) and (
            anonymous or decl.lexical_parent == cursor
        ):
            word = _word(decl) if anonymous else f"{_word(decl)} {decl.spelling}"
            entry |= {"inline": word, "dims": dims, "fields": _fields(decl)}
        else:
            entry["type"] = _declare(child.type, child.spelling)
        if child.is_bitfield():
            entry["bits"] = child.get_bitfield_width()
        fields.append(entry)
    return fields


def _parse(folder: Path, name: str, text: str, include: Path) -> cindex.TranslationUnit:
    unit = cindex.Index.create().parse(
        name,
        args=["-xc", "-std=c11", f"-I{include}", f"-I{folder}", "-I/usr/lib/gcc/x86_64-linux-gnu/12/include"],
        unsaved_files=[(name, text)],
        options=cindex.TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD,
    )
    errors = [d.spelling for d in unit.diagnostics if d.severity >= cindex.Diagnostic.Error]
    if errors:
        raise SystemExit(f"{name}: " + "; ".join(errors[:5]))
    return unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path, help="folder with the two header wheels")
    wheels = parser.parse_args().wheels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = {}
        for wheel in sorted(wheels.glob("nvidia_*.whl")):
            source[wheel.name.split("-")[0]] = wheel.name.split("-")[1]
            zipfile.ZipFile(wheel).extractall(folder)
        for path, text in (STAND_INS | {"cudaProfiler.h": PROFILER}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        include = folder / "nvidia/cu13/include"
        for api, prefix, text in (("cuda", "cu", CUDA_SOURCE), ("nvml", "nvml", NVML_SOURCE)):
            snapshot = Snapshot(prefix)
            snapshot.read(_parse(folder, str(folder / f"{api}_all.c"), text, include))
            out = ROOT / "api/snapshot" / f"{api}.json"
            out.write_text(json.dumps(snapshot.as_json(source), indent=1) + "\n")
            print(f"{out.name}: {len(snapshot.types)} types, {len(snapshot.functions)} functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
