"""Single calls with good and bad arguments, made from the snapshot of the driver's header; comparison of answers.

    python tests/calls/fuzz.py run OUT [--library libcuda.so.1] [--only NAME] [--seconds N] [--jobs K]
    python tests/calls/fuzz.py compare JUDGE OTHER [--expected FILE]

`run` makes every call in every state (before cuInit, without a context, with one, with a destroyed one, during a
capture) and writes one line for each: state, function, arguments by class, result, outputs by class. `compare` prints
what differs between two such files and is not expected. A word of a case is a number, or

    H:KIND+N  a good object (D: a destroyed one), with N added     M:NAME  host memory, a function, kernel parameters
    T:TEXT    a string       S:SIZE(OFFSET.WIDTH=WORD;…)  a struct     Oi, Oq, Op, Ov, Ob and a SIZE  an output
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STATES = ("before", "none", "current", "destroyed", "capture")

# Good handles by type, and what else is a handle: a value of another kind has to be refused.
HANDLES = {
    "CUstream": "H:stream",
    "CUevent": "H:event",
    "CUcontext": "H:context",
    "CUmodule": "H:module",
    "CUfunction": "H:function",
    "CUlibrary": "H:library",
    "CUkernel": "H:kernel",
    "CUgraph": "H:graph",
    "CUgraphNode": "H:kernel_node",
    "CUgraphExec": "H:exec",
    "CUmemoryPool": "H:pool",
    "CUmemGenericAllocationHandle": "H:memory",
}
NUMBER_SIZES = {"int": 4, "unsigned int": 4, "cuuint32_t": 4, "size_t": 8, "cuuint64_t": 8, "unsigned long long": 8,
                "unsigned short": 2, "unsigned char": 1}  # fmt: skip
NUMBERS = set(NUMBER_SIZES)
# What is not asked, and why.
LEFT_OUT = {
    "cuGetExportTable": "answers private tables, which have tests of their own",
    "cuLinkCreate": "links need options that depend on each other; tests/test_linking.py has them",
    "cuLinkCreate_v2": "as cuLinkCreate",
    "cuLinkAddData": "as cuLinkCreate",
    "cuLinkAddData_v2": "as cuLinkCreate",
    "cuLinkAddFile": "as cuLinkCreate",
    "cuLinkAddFile_v2": "as cuLinkCreate",
    "cuLinkComplete": "as cuLinkCreate",
    "cuLinkDestroy": "as cuLinkCreate",
    "cuGetProcAddress": "answers addresses; tests/test_answers.py has it whole",
    "cuGetProcAddress_v2": "as cuGetProcAddress",
    "cuIpcOpenMemHandle": "takes a struct by value, which lies on the stack; tests/test_ipc.py",
    "cuIpcOpenMemHandle_v2": "as cuIpcOpenMemHandle",
    "cuIpcOpenEventHandle": "as cuIpcOpenMemHandle",
    "cuMemPoolExportPointer": "needs a pool that other processes may have; tests/test_ipc_pools.py",
    "cuMemPoolExportToShareableHandle": "as cuMemPoolExportPointer",
    "cuMemPoolImportFromShareableHandle": "as cuMemPoolExportPointer; and it follows what is no handle of a fabric",
    "cuMemPoolImportPointer": "as cuMemPoolExportPointer",
    "cuEGLApiInit": "no header declares it",
    "cuMemGetAttribute": "no header declares it",
    "cuMemGetAttribute_v2": "no header declares it",
    "cuEGLStreamProducerPresentFrame": "a struct by value, for a display that is not there",
    "cuUserObjectCreate": "user objects have no maker here yet",
    "cuUserObjectRetain": "as cuUserObjectCreate",
    "cuUserObjectRelease": "as cuUserObjectCreate",
    "cuGraphRetainUserObject": "as cuUserObjectCreate",
    "cuGraphReleaseUserObject": "as cuUserObjectCreate",
}
# Values that differ from run to run, machine to machine or session to session, and say nothing of the call.
VARYING = {"cuStreamGetId", "cuCtxGetId", "cuMemGetInfo_v2", "cuEventElapsedTime", "cuEventElapsedTime_v2",
           "cuDeviceTotalMem_v2", "cuStreamGetCaptureInfo", "cuStreamGetCaptureInfo_v2", "cuStreamGetCaptureInfo_v3",
           "cuCtxGetLimit"}  # fmt: skip
# Good words of single parameters, where the type alone does not say.
GOOD = {
    "cuMemcpyHtoD_v2": {"srcHost": "M:host"},
    "cuGraphMemsetNodeGetParams": {"hNode": "H:memset_node"},
    "cuGraphMemsetNodeSetParams": {"hNode": "H:memset_node"},
    "cuGraphExecMemsetNodeSetParams": {"hNode": "H:memset_node"},
    "cuGraphMemcpyNodeGetParams": {"hNode": "H:memcpy_node"},
    "cuGraphMemcpyNodeSetParams": {"hNode": "H:memcpy_node"},
    "cuGraphExecMemcpyNodeSetParams": {"hNode": "H:memcpy_node"},
    "cuGraphChildGraphNodeGetGraph": {"hNode": "H:child_node"},
    "cuGraphExecChildGraphNodeSetParams": {"hNode": "H:child_node"},
    "cuMemFreeAsync": {"dptr": "H:pool_memory"},
    "cuMemFreeHost": {"p": "H:pinned"},
    "cuMemHostGetDevicePointer_v2": {"p": "H:pinned"},
    "cuMemHostGetFlags": {"p": "H:pinned"},
    "cuMemHostRegister_v2": {"bytesize": "4096"},
    "cuMemHostRegister": {"bytesize": "4096"},
    "cuMemAddressFree": {"ptr": "H:reserved", "size": "0x200000"},
    "cuMemAddressReserve": {"size": "0x200000", "alignment": "0", "addr": "0"},
    "cuMemMap": {"ptr": "H:reserved", "size": "0x200000", "offset": "0"},
    "cuMemUnmap": {"ptr": "H:reserved", "size": "0x200000"},
    "cuMemSetAccess": {"ptr": "H:reserved", "size": "0x200000"},
    "cuMemGetAccess": {"ptr": "H:reserved"},
    "cuMemCreate": {"size": "0x200000"},
    "cuMemAllocPitch_v2": {"WidthInBytes": "64", "Height": "4", "ElementSizeBytes": "4"},
    "cuModuleLoadData": {"image": "M:host"},
    "cuModuleLoadFatBinary": {"fatCubin": "M:host"},
    "cuModuleLoad": {"fname": "T:/nonexistent/image"},
    "cuLibraryLoadFromFile": {"fileName": "T:/nonexistent/image"},
    "cuModuleGetGlobal_v2": {"name": "T:no_such_global"},
    "cuLogsDumpToFile": {"pathToFile": "T:/nonexistent/log"},
    "cuLibraryGetGlobal": {"name": "T:no_such_global"},
    "cuDeviceGetByPCIBusId": {"pciBusId": "T:0000:00:00.0"},
    "cuGetErrorName": {"error": "1"},
    "cuGetErrorString": {"error": "1"},
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": {"blockSize": "64", "dynamicSMemSize": "0"},
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": {"blockSize": "64", "dynamicSMemSize": "0"},
    "cuLaunchKernel": {"kernelParams": "M:params", "extra": "0", "sharedMemBytes": "0"},
    "cuLaunchCooperativeKernel": {"kernelParams": "M:params", "sharedMemBytes": "0"},
    "cuLaunchKernelEx": {"kernelParams": "M:params", "extra": "0"},
    "cuStreamWaitValue32": {"value": "0"},
    "cuStreamWaitValue32_v2": {"value": "0"},
    "cuStreamWaitValue64": {"value": "0"},
    "cuStreamWaitValue64_v2": {"value": "0"},
}
# A wait for another value, or by another comparison, may never end.
FIXED = {("cuStreamWaitValue32", "value"), ("cuStreamWaitValue32_v2", "value"), ("cuStreamWaitValue64", "value"),
         ("cuStreamWaitValue64_v2", "value")}  # fmt: skip
IN_OUT = ("CUctxCreateParams", "CUgraphNodeParams", "CUDA_GRAPH_INSTANTIATE_PARAMS")  # structs that a call reads
SIZES = ("ByteCount", "bytesize", "size", "numBytes", "N", "Width", "Height")
SHAPE = {"gridDimX": "1", "gridDimY": "1", "gridDimZ": "1", "blockDimX": "32", "blockDimY": "1", "blockDimZ": "1"}
# Structs: which fields are not zero in a good one.
FIELDS: dict[str, dict[str, str]] = {
    "struct CUDA_MEMCPY2D_st": {"srcMemoryType": "2", "srcDevice": "H:device", "srcPitch": "64", "dstMemoryType": "2",
                                "dstDevice": "H:device+8192", "dstPitch": "64", "WidthInBytes": "32", "Height": "4"},
    "struct CUDA_MEMCPY3D_st": {"srcMemoryType": "2", "srcDevice": "H:device", "srcPitch": "64", "srcHeight": "4",
                                "dstMemoryType": "2", "dstDevice": "H:device+8192", "dstPitch": "64", "dstHeight": "4",
                                "WidthInBytes": "32", "Height": "4", "Depth": "2"},
    "struct CUDA_KERNEL_NODE_PARAMS_st": {"func": "H:function", "kernelParams": "M:params", **SHAPE},
    "struct CUDA_KERNEL_NODE_PARAMS_v2_st": {"func": "H:function", "kernelParams": "M:params", **SHAPE},
    "struct CUDA_MEMSET_NODE_PARAMS_st": {"dst": "H:device", "elementSize": "1", "width": "64", "height": "1"},
    "struct CUDA_HOST_NODE_PARAMS_st": {"fn": "M:host_function"},
    "struct CUlaunchConfig_st": {"hStream": "H:stream", **SHAPE},
    "struct CUmemAllocationProp_st": {"type": "1", "location": "1"},
    "struct CUmemPoolProps_st": {"allocType": "1", "location": "1"},
    "struct CUmemAccessDesc_st": {"location": "1", "flags": "3"},
    "struct CUmemLocation_st": {"type": "1"},
}  # fmt: skip


class Header:
    """The snapshot: what types are, by name."""

    def __init__(self) -> None:
        raw = json.loads((ROOT / "api/snapshot/cuda.json").read_text())
        self.functions: dict[str, list[dict[str, str]]] = {n: f["params"] for n, f in raw["functions"].items()}
        self.types: dict[str, dict[str, Any]] = {t["name"]: t for t in raw["types"]}

    def meant(self, name: str) -> str:
        """The type behind typedefs."""
        while self.types.get(name, {}).get("kind") == "typedef":
            declared = self.types[name]["type"]
            if "(" in declared or not declared.endswith(" " + name):
                break
            name = declared.removesuffix(" " + name)
        return name

    def enum(self, name: str) -> list[int]:
        entry = self.types.get(self.meant(name), {})
        return [value for _, value in entry["values"]] if entry.get("kind") == "enum" else []

    def struct(self, name: str) -> dict[str, Any]:
        entry = self.types.get(self.meant(name), {})
        return entry if entry.get("kind") in ("struct", "union") else {}

    def size(self, name: str) -> int:
        if name.endswith("*") or self.meant(name).endswith("*"):
            return 8
        if self.struct(name):
            return int(self.struct(name)["size"])
        if self.enum(name) or name in ("float", "CUdevice"):
            return 4
        return NUMBER_SIZES.get(name, 8)


def structure(header: Header, name: str, changes: dict[str, str]) -> str:
    """A good struct but for the fields in `changes`."""
    entry = header.struct(name)
    values = {**FIELDS.get(header.meant(name), {}), **changes}
    parts = []
    for item in entry["fields"]:
        if item["name"] in values:
            width = min(8, header.size(item["type"].rpartition(" ")[0]))
            parts.append(f"{item['offset'] // 8}.{width}={values[item['name']]}")
    return f"S:{entry['size']}({';'.join(parts)})"


def bad_numbers(good: str) -> list[str]:
    return [v for v in ("0", "1", "-1", "0x7fffffff", "0xffffffffffffff00") if v != good]


def bad_words(header: Header, kind: str, good: str) -> list[str]:
    """Wrong values of one parameter or field."""
    if kind in HANDLES:
        other = "H:event" if kind == "CUstream" else "H:stream"
        specials = ["1", "2"] if kind == "CUstream" else []
        return ["0", HANDLES[kind].replace("H:", "D:"), other, "0x1230", *specials]
    if kind == "CUdevice":
        return ["-1", "1", "1000"]
    if kind == "CUdeviceptr":
        # Not the first byte behind the memory: what lies there is the driver's choice.
        return ["0", "M:host", "D:device", "0x1230", "H:device+65535", "H:pinned"]
    if header.enum(kind):
        values = header.enum(kind)
        small = [v for v in values if -1 < v < 0x7FFFFFFF]
        return [str(v) for v in sorted({*small, max(small) + 1, -1} - {int(good, 0)})]
    if kind in NUMBERS:
        return bad_numbers(good)
    if kind.endswith("*") or header.meant(kind).endswith("*") or "(" in str(header.types.get(kind, {}).get("type", "")):
        return ["0"]
    return []


def good_word(header: Header, function: str, name: str, kind: str) -> str:
    """A value that the parameter may have in a call that works, as far as its type and name say."""
    plain = function.removesuffix("_ptsz").removesuffix("_ptds")
    said = GOOD.get(plain, {}).get(name)
    if said is not None:
        return said
    if kind in HANDLES:
        return HANDLES[kind]
    if kind == "CUdevice":
        return "0"
    if kind == "CUdeviceptr":
        return "H:device+8192" if name.startswith("src") else "H:device"
    if header.enum(kind):
        values = [v for v in header.enum(kind) if v >= 0]
        return str(values[1] if len(values) > 1 and values[0] == 0 else values[0])
    if kind in NUMBERS:
        if name in SIZES or name.lower().endswith("size"):
            return "64"
        if "Dim" in name or "Pitch" in name:
            return "1" if "Dim" in name else "64"
        return "0"
    if kind == "const char *":
        return "T:fill_u32"
    if kind == "CUhostFn":
        return "M:host_function"
    if kind == "CUstreamCallback":
        return "M:stream_callback"
    if kind == "CUoccupancyB2DSize":
        return "M:shared_memory"
    if kind.endswith("*"):
        return pointer_word(header, function, name, kind)
    return "0"


def pointer_word(header: Header, function: str, name: str, kind: str) -> str:
    target = kind.removesuffix("*").strip()
    constant = target.startswith("const ")
    target = target.removeprefix("const ").strip()
    if header.struct(target) and (constant or target in IN_OUT):
        return structure(header, target, {})
    if constant and target in HANDLES:
        return f"S:8(0.8={HANDLES[target]})"
    if constant or (target == "void" and not function.startswith(("cuPointerGetAttribute", "cuMemPoolGet"))):
        return "M:host"
    if header.struct(target) or target in ("char", "void"):
        return f"Ob{max(256, header.size(target) if header.struct(target) else 256)}"
    size = header.size(target)
    plain = function.removesuffix("_ptsz").removesuffix("_ptds")
    if plain in VARYING:
        return f"Ov{size}"
    if (name.startswith("num") and size == 8) or target == "CUstreamCaptureMode":
        return f"Oq{size}"
    if name in ("nodes", "from", "to", "dependencies", "dependentNodes", "rootNodes", "dependencies_out"):
        return "Op64"
    number = target in NUMBERS or target in ("CUdevice",) or bool(header.enum(target))
    return f"{'Oi' if number else 'Op'}{size}"


def struct_of(header: Header, kind: str) -> str:
    target = kind.removesuffix("*").replace("const ", "").strip() if kind.endswith("*") else ""
    return target if target and header.struct(target) else ""


def cases_of(header: Header, function: str, *, pairs: bool = True) -> Iterator[list[str]]:
    """The arguments of every call of one function: all good, one wrong, two wrong with `pairs`."""
    params = header.functions[function]
    plain = function.removesuffix("_ptsz").removesuffix("_ptds")
    good = [good_word(header, function, p["name"], p["type"]) for p in params]
    wrong: list[list[str]] = []
    for p, word in zip(params, good, strict=True):
        words = [] if (plain, p["name"]) in FIXED else bad_words(header, p["type"], word)
        target = struct_of(header, p["type"])
        if target and word.startswith("S:"):
            for item in header.struct(target)["fields"]:
                if not item["name"] or "inline" in item or "[" in item["type"]:
                    continue
                kind = item["type"].rpartition(" ")[0]
                now = FIELDS.get(header.meant(target), {}).get(item["name"], "0")
                words += [
                    structure(header, target, {item["name"]: v}) for v in bad_words(header, kind, now) if v != now
                ]
        wrong.append(words)
    yield good
    for at, words in enumerate(wrong):
        for word in words:
            yield [*good[:at], word, *good[at + 1 :]]
    for first in range(len(params) if pairs else 0):
        for second in range(first + 1, len(params)):
            for a in wrong[first][:3]:
                for b in wrong[second][:3]:
                    both = list(good)
                    both[first], both[second] = a, b
                    yield both


def served() -> dict[str, bool]:
    """Functions that the product serves, or else refuses as a driver does, by api/."""
    sys.path.insert(0, str(ROOT / "src"))
    from tensor_fusion.apigen.coverage import coverage
    from tensor_fusion.apigen.model import load

    table = json.loads(coverage(load(ROOT / "api")))["cuda"]["functions"]
    return {name: line["kind"] != "refused" for name, line in table.items() if line["kind"] != "unsupported"}


def stands_for() -> dict[str, list[str]]:
    """For each name of the driver that api/ describes by another one, all that it stands for."""
    sys.path.insert(0, str(ROOT / "src"))
    from tensor_fusion.apigen.model import load

    lines = next(api.lines for api in load(ROOT / "api").apis if api.name == "cuda")
    found: dict[str, list[str]] = {}
    for name in lines:
        line = lines[name]
        while line.target:
            found.setdefault(name, []).append(line.target)
            line = lines[line.target]
    return found


def all_cases(only: str = "") -> list[str]:
    header = Header()
    lines = []
    for state in STATES:
        for function, is_served in sorted(served().items()):
            if function in LEFT_OUT or function not in header.functions or only not in function:
                continue
            for words in cases_of(header, function, pairs=is_served):
                if state == "capture" and any("D:graph" in word for word in words):
                    continue  # the capture's own graph may lie where the destroyed one was
                lines.append(" ".join([state, function, *words]))
    return list(dict.fromkeys(lines))


def compile_calls(folder: Path, compiler: str = "cc") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(ROOT / "api"), "--out", str(folder)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True, timeout=120)
    flags = [
        "-std=gnu17",
        "-D_GNU_SOURCE",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Werror",
        "-Wno-sign-conversion",
    ]
    out = folder / "calls"
    sources = sorted(map(str, HERE.glob("*.c")))
    subprocess.run([compiler, *flags, f"-I{folder}", *sources, "-o", str(out), "-ldl", "-pthread"], check=True)
    return out


def command_of(binary: Path, library: str, seconds: int, recover: bool) -> list[str]:
    kernels = str(ROOT / "tests/kernels/kernels.ptx")
    return [str(binary.resolve()), library, kernels, str(seconds), *(["recover"] if recover else [])]


def ask(
    binary: Path, library: str, cases: Sequence[str], env: dict[str, str] | None = None, seconds: int = 5
) -> list[str]:
    """The answer line of every case; raises RuntimeError with the program's sentence if it gives none.

    Asked in the program's folder: functions that write files do so, too.
    """
    command = command_of(binary, library, seconds, recover=False)
    done = subprocess.run(
        command, input="\n".join(cases) + "\n", env=env, cwd=binary.parent, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"calls ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout.splitlines()


def by_state(binary: Path, library: str, cases: Sequence[str], env: dict[str, str] | None = None) -> list[str]:
    """The answers of `ask`, the states beside each other."""
    parts = [[case for case in cases if case.startswith(state + " ")] for state in STATES]
    with ThreadPoolExecutor(max_workers=len(STATES)) as pool:
        return [line for lines in pool.map(lambda part: ask(binary, library, part, env), parts) for line in lines]


PIECE = 400  # cases of one process: a context for so many


def pieces_of(cases: Sequence[str]) -> list[list[str]]:
    """The cases in lists of one state, the states in turn; last what a driver may crash at, since that is dear."""
    dear = [any(word in case for word in (" D:", "=D:", " 0x1230", "=0x1230")) for case in cases]
    pieces: list[list[list[str]]] = []
    for later in (False, True):
        for state in STATES:
            mine = [c for c, d in zip(cases, dear, strict=True) if d == later and c.startswith(state + " ")]
            pieces.append([mine[at : at + PIECE] for at in range(0, len(mine), PIECE)])
    half = len(STATES)
    in_turn = [[p for row in zip_longest(*part) for p in row if p] for part in (pieces[:half], pieces[half:])]
    return in_turn[0] + in_turn[1]


def ask_beside(
    binary: Path,
    library: str,
    cases: Sequence[str],
    out: Path,
    env: dict[str, str] | None = None,
    jobs: int = 4,
    seconds: float = 1e6,
    case_seconds: int = 5,
) -> list[str]:
    """Asks what `out` has no answer for yet, in `jobs` processes beside each other, until the time is over, and adds
    the answers to it as they come. What went wrong, in sentences; a run that ends early goes on with the next call."""
    end = time.monotonic() + seconds
    known = read_answers(out)
    wrong: list[str] = []

    def one(piece: list[str]) -> None:
        left = end - time.monotonic()
        if left <= 0:
            return
        command = command_of(binary, library, case_seconds, recover=True)
        with out.open("ab") as file:  # each answer is one write
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE, env=env, text=True,
                start_new_session=True, cwd=binary.parent,
            )  # fmt: skip
            try:
                errors = process.communicate("\n".join(piece) + "\n", timeout=left)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return
        if process.returncode != 0:
            wrong.append(f"calls ended with {process.returncode}: {errors.strip()[-300:]}")

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(one, pieces_of([case for case in cases if case not in known])))
    return wrong


def read_answers(path: Path) -> dict[str, str]:
    """What a file of answers holds; its last line counts if it is whole."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return answers_of([line.rstrip("\n") for line in lines if line.endswith("\n")])


def answers_of(lines: Sequence[str]) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


VERDICTS = ("simulated", "ours", "driver", "either", "not asked")


def read_expected(path: Path) -> dict[str, str]:
    """`STATE FUNCTION = ANSWER | OTHER ANSWER # VERDICT: reason`, keyed by what stands before the verdict."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        key, separator, said = line.partition(" # ")
        verdict, _, reason = said.partition(": ")
        if not separator or verdict not in VERDICTS or not reason.strip():
            raise ValueError(
                f"{path.name}:{number}: an expected difference needs ' # ', who is right, ': ' and a reason"
            )
        found[key] = said
    return found


NO_ANSWER = ("missing", "crashes", "hangs", "not reached")


def driver_answers() -> dict[str, str]:
    """What driver 580.159.04 answered on an H200, as far as it was asked."""
    return answers_of(lzma.decompress((HERE / "driver-580.159.04.txt.xz").read_bytes()).decode().splitlines())


def either_is_right(answer: str, theirs: str, alone: set[str]) -> bool:
    """Whether both refuse the call, leave its outputs alone, and the second names one of its faults: `alone` has the
    answers to calls with one of them. CUDA does not promise which fault a call with two is refused for."""
    one, two = answer.split(" "), theirs.split(" ")
    codes = {known.split(" ")[0] for known in alone}
    untouched = one[1:] == two[1:] or set(one[1:]) | set(two[1:]) <= {"-"}
    return untouched and one[0] != "0" and two[0] != "0" and two[0] in codes


class Faults:
    """What is wrong with a case: arguments that are not good ones, and a state in which no good ones are served."""

    def __init__(self) -> None:
        self.header = Header()
        self.good: dict[str, list[str]] = {}

    def good_of(self, function: str) -> list[str]:
        if function not in self.good:
            self.good[function] = next(cases_of(self.header, function))
        return self.good[function]

    def one_by_one(self, case: str) -> list[str]:
        """Cases with one fault each of a case that may have more: each wrong argument, and the state."""
        state, function, *words = case.split(" ")
        good = self.good_of(function)
        wrong = [at for at, (word, right) in enumerate(zip(words, good, strict=True)) if word != right]
        single = [[right if at != one else words[at] for at, right in enumerate(good)] for one in wrong]
        found = [[state, function, *s] for s in single] if len(wrong) > 1 else []
        if wrong:  # the state, or what no argument can mend
            found.append([state, function, *good])
        if state != "current":
            found.append(["current", function, *words])
        return [" ".join(f) for f in found]

    def of_null(self, case: str) -> set[str]:
        """The answer to an output that goes nowhere: for many functions there is no good call to ask that with."""
        function, *words = case.split(" ")[1:]
        pairs = zip(words, self.good_of(function), strict=True)
        return {"1"} if any(word == "0" and right.startswith("O") for word, right in pairs) else set()

    def foreign(self, case: str) -> bool:
        """Whether an object of another kind is passed, whose memory a driver reads as if it were the right one."""
        function, *words = case.split(" ")[1:]
        pairs = zip(words, self.good_of(function), strict=True)
        return any(word[:2] == right[:2] == "H:" and word.split("+")[0] != right.split("+")[0] for word, right in pairs)


def refuses(answer: str, judge: str) -> bool:
    """An error, and no output was touched, or as the judge does; room for four stays that."""
    code, *outputs = answer.split(" ")
    untouched = set(outputs) <= {"-", "4"} or outputs == judge.split(" ")[1:]
    return code.isdigit() and code != "0" and untouched


def differences(
    judge: dict[str, str], other: dict[str, str], beside: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Cases whose answers differ, by state, function and both answers. Where the judge has no such function, or
    crashes, any answer is right. A call with two faults may be refused for either, and an object of another kind in
    any way. `beside`: what the judge said to calls that the other was not asked."""
    found: dict[str, list[str]] = {}
    faults = Faults()
    heard = (judge, other, beside or {})
    for case, answer in judge.items():
        theirs = other.get(case, "no answer")
        if answer == theirs or answer.startswith(NO_ANSWER):
            continue
        if refuses(theirs, answer) and faults.foreign(case):
            continue
        alone = faults.one_by_one(case)
        codes = {known[one] for known in heard for one in alone if one in known} | faults.of_null(case)
        if either_is_right(answer, theirs, codes):
            continue
        state, function = case.split()[:2]
        found.setdefault(f"{state} {function} = {answer} | {theirs}", []).append(case)
    return found


def compare(first: Path, second: Path, expected: Path | None) -> int:
    known = read_expected(expected) if expected else {}
    one, two = (answers_of(path.read_text().splitlines()) for path in (first, second))
    found = differences(one, two)
    unknown = {key: cases for key, cases in found.items() if key not in known}
    for key, cases in unknown.items():
        print(f"{key}    {len(cases)} calls, the first: {cases[0]}")
    count = sum(map(len, found.values()))
    print(f"{len(one)} calls; {count} differ in {len(found)} ways, {len(unknown)} of these are not expected")
    return bool(unknown)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the calls that OUT has no answer for, add theirs")
    run.add_argument("out")
    run.add_argument("--library", default="libcuda.so.1")
    run.add_argument("--only", default="", help="part of a function's name")
    run.add_argument("--jobs", type=int, default=len(STATES), help="processes beside each other")
    run.add_argument("--seconds", type=float, default=1e6, help="for all; the same command again goes on")
    run.add_argument("--case-seconds", type=int, default=5, help="after which a call hangs")
    two = commands.add_parser("compare")
    two.add_argument("judge", type=Path)
    two.add_argument("other", type=Path)
    two.add_argument("--expected", type=Path)
    given = parser.parse_args(words)
    if given.command == "compare":
        return compare(given.judge, given.other, given.expected)
    cases, out = all_cases(given.only), Path(given.out)
    with tempfile.TemporaryDirectory() as folder:
        wrong = ask_beside(compile_calls(Path(folder)), given.library, cases, out, None, given.jobs, given.seconds,
                           given.case_seconds)  # fmt: skip
    left = len(set(cases) - set(read_answers(out)))
    print(*wrong, f"{len(cases) - left} of {len(cases)} calls have an answer", sep="\n")
    return bool(wrong or left)


if __name__ == "__main__":
    sys.exit(main())
