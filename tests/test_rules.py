"""The project's rules about its sources, its generated code and its documents, checked."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import rooms

from tensor_fusion.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
MOST_LINES = 700
# Whose headers each folder of native/ may include, besides its own.
LAYERS = {
    "base": set[str](),
    "wire": {"base"},
    "ring": {"base", "wire"},
    "transport": {"base", "wire", "ring"},
    "client/core": {"base", "wire", "ring", "transport"},
    "oldlibc": set[str](),
    "client/shim": {"base"},
    "client/cuda": {"base", "wire", "ring", "transport", "client/core", "client/shim"},
    "client/nvml": {"base", "wire", "ring", "transport", "client/core"},
    "session": {"base", "wire", "ring", "transport"},
    "simgpu": set[str](),
    # Of the client it reads the counters, whose layout tp_conn.h has; it links nothing of ours.
    "bench": {"base", "wire", "client/core"},
    "onefile": set[str](),
}
# The simulated GPU stands in for NVIDIA's driver: it knows the drivers' types and nothing of ours.
# The benchmark has the types of the driver that it measures, and nothing that is only ours.
GENERATED_FOR = {
    "base": "",
    "wire": "",
    "ring": "",
    "transport": "",
    "simgpu": "tpg_cuda.h tpg_nvml.h tpg_table.h",
    "bench": "tpg_cuda.h",
    "onefile": "",
}
# In strangers' processes: their standard output is not ours, and neither is their life.
FORBIDDEN_IN_CLIENT = r"\b(?:printf|vprintf|puts|putchar|abort|exit|_exit|assert|perror)\s*\("
STDOUT_ALLOWED = "native/client/cuda/process/print.c"  # which prints what the program's own kernels have printed
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)

C_FILES = sorted(path for folder in (NATIVE, ROOT / "tests/native") for path in folder.rglob("*.[ch]"))
PYTHON_FILES = sorted(path for name in ("src", "tests", "packaging") for path in (ROOT / name).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_comments(text: str) -> str:
    """C without comments, strings and character constants, so that words in them do not count."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', " ", text, flags=re.DOTALL)


def layer(path: Path) -> str:
    return next(name for name in LAYERS if path.is_relative_to(NATIVE / name))


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


# Sources


def test_there_are_sources() -> None:
    assert len(C_FILES) > 100
    assert len(PYTHON_FILES) > 40
    assert {layer(path) for path in C_FILES if path.is_relative_to(NATIVE)} == set(LAYERS)


@pytest.mark.parametrize("path", [*C_FILES, *PYTHON_FILES], ids=name_of)
def test_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_c_file_begins_with_what_it_is(path: Path) -> None:
    assert path.read_text().startswith(("/*", "//"))


@pytest.mark.parametrize("path", [path for path in C_FILES if path.is_relative_to(NATIVE)], ids=name_of)
def test_includes_follow_the_layers(path: Path) -> None:
    places = {header.name: layer(header) for header in NATIVE.rglob("*.h")}
    own = layer(path)
    for included in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE):
        if included in places:
            assert places[included] == own or places[included] in LAYERS[own], f"{included} is of {places[included]}"
        elif included.startswith("tpg_") and own in GENERATED_FOR:
            assert included in GENERATED_FOR[own].split(), f"{included} is generated, which {own} does not know"


# Arrows between families that go back, of files to files. The numbers may fall; nothing makes them grow.
ARROWS_BACK = {"client/cuda": 0, "session": 0}


@pytest.mark.parametrize("side", rooms.ORDER)
def test_families_have_an_order(side: str) -> None:
    found = rooms.side(side)
    assert found.families | {rooms.START} == set(rooms.ORDER[side])
    assert len(found.arrows) > 150
    shared = set.intersection(*map(set, rooms.ORDER.values()))
    first, second = ([name for name in order if name in shared] for order in rooms.ORDER.values())
    assert first == second


def test_the_page_has_the_families_in_their_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = re.findall(
        r"^\| `(\w+)/` \|", text[text.index("### Families") : text.index("## A call from")], flags=re.MULTILINE
    )
    for order in rooms.ORDER.values():
        assert [name for name in table if name in order] == [name for name in order if name != rooms.START]


@pytest.mark.parametrize("side", rooms.ORDER)
def test_arrows_between_families_go_down(side: str) -> None:
    wrong = rooms.side(side).back()
    assert len(wrong) <= ARROWS_BACK[side], "\n".join(map(str, wrong))


@pytest.mark.parametrize("side", rooms.ORDER)
def test_a_family_shows_one_header(side: str) -> None:
    """Its others are its own. Of the process it is the one that all include."""
    prefix, root = {"client/cuda": ("tpc", "tpc.h"), "session": ("tpw", "tpw_session.h")}[side]
    shown = [arrow for arrow in rooms.side(side).arrows if arrow.target[1] in arrow.names]
    assert len(shown) > 10
    headers = {name: root if name == "process" else f"{prefix}_{name}.h" for name in rooms.ORDER[side]}
    assert not [str(arrow) for arrow in shown if arrow.target[1] != headers[arrow.target[0]]]


def test_lists_have_two_ends() -> None:
    """Who offers a list tells it, and somebody registers: a misspelt name would be a list of its own, and empty."""
    text = "".join(
        without_comments(path.read_text()) for path in NATIVE.rglob("*.[ch]") if path.name != "tp_register.h"
    )
    offered, told, registered = (
        set(re.findall(rf"\b{word}\(\s*(\w+)", text)) for word in ("TP_LIST", "TP_(?:TELL|ASK)", "TP_REGISTER")
    )
    assert len(offered) > 4
    assert offered == told == registered


def test_an_arrow_back_is_seen(tmp_path: Path) -> None:
    texts = {
        "low/tpc_low.h": "#define TPC_LOW(x) tpc_low(x)\nint tpc_low(int x); /* tpc_high */\nextern int tpc_flag;\n",
        "low/low.c": '#include "tpc_low.h"\nint tpc_flag;\nint\ntpc_low(int x) {\n    return tpc_raise(x);\n}\n',
        "high/high.c": '#include "tpc_low.h"\nint tpc_raise(int x) {\n    return TPC_LOW(x) + tpc_flag;\n}\n',
        "high/alone.c": "static int tpc_low(void) {\n    return 0;\n}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    side = rooms.Side(tmp_path, ("low", "high", rooms.START))
    assert [str(arrow) for arrow in side.back()] == ["low/low.c -> high/high.c: tpc_raise"]
    assert side.circles() == [("low", "high")]
    down = {(arrow.source[1], arrow.target[1]): arrow.names for arrow in side.arrows if arrow.source[0] == "high"}
    assert down["high.c", "tpc_low.h"] == ("TPC_LOW", "tpc_low.h") and down["high.c", "low.c"] == ("tpc_flag",)


# Second meanings that words once had. A twin is the counterpart of mapped memory, a slot is a place in the segment,
# limits are a context's, a mark is where the GPU writes a word.
OLD_WORDS = (
    r"\btwin\(\"cu|tpc_slot|tpw_slot_(?:take|give)|TPW_SLOT_SIZE|take_slot|tp_limits|[Ll]imits[_ -]?[Pp]age|image_mark"
)


def test_words_have_one_meaning() -> None:
    paths = [path for name in ("api", "src", "native", "docs") for path in (ROOT / name).rglob("*.*")]
    texts = {
        path: path.read_text()
        for path in [*paths, ROOT / "ARCHITECTURE.md"]
        if path.suffix in (".c", ".h", ".md", ".py")
    }
    assert len(texts) > 300
    assert not {
        name_of(path): re.findall(OLD_WORDS, text) for path, text in texts.items() if re.search(OLD_WORDS, text)
    }


@pytest.mark.parametrize("path", sorted((NATIVE / "client").rglob("*.[ch]")), ids=name_of)
def test_client_leaves_the_program_alone(path: Path) -> None:
    code = without_comments(path.read_text())
    assert not re.findall(FORBIDDEN_IN_CLIENT, code)
    assert name_of(path) == STDOUT_ALLOWED or not re.findall(r"\bstdout\b", code)
    assert not re.search(r"__attribute__\s*\(\(\s*_*(?:con|de)structor", path.read_text())


def test_generator_knows_no_function() -> None:
    exports = json.loads((ROOT / "api/exports.json").read_text())
    names = {*exports["cuda"], *exports["nvml"]}
    for path in (ROOT / "src/tensor_fusion/apigen").glob("*.py"):
        used = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", path.read_text())) & names
        assert not used, f"{path.name} names {sorted(used)}"


@pytest.mark.parametrize("path", sorted((ROOT / "api").rglob("*.py")), ids=name_of)
def test_api_holds_declarations_only(path: Path) -> None:
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.IfExp, ast.comprehension)
    assert not [ast.dump(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, logic)]


def test_ctypes_stays_in_two_modules() -> None:
    users = {
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"^\s*(import|from) ctypes", path.read_text(), flags=re.MULTILINE)
    }
    assert users == {"abi.py", "program.py"}


# The wire schema


def locked(text: str) -> list[tuple[int, str]]:
    pairs = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [(int(number), name) for number, name in pairs]


@pytest.mark.parametrize(("path", "first"), [("api/opcodes.lock", 16), ("api/messages.lock", 1)])
def test_frames_are_numbered_once(path: str, first: int) -> None:
    entries = locked((ROOT / path).read_text())
    numbers = [number for number, _ in entries]
    assert numbers == list(range(first, first + len(entries)))
    assert len({name for _, name in entries}) == len(entries)


def history(path: str) -> list[str]:
    """Every committed version."""
    git = ("git", "-c", "safe.directory=*", "-C", ROOT)
    log = run(*git, "log", "--format=%H", "--reverse", "--", path)
    assert log.returncode == 0 and log.stdout, log.stderr
    return [run(*git, "show", f"{commit}:{path}").stdout for commit in log.stdout.split()]


# A file of the sources has no history, and then there is nothing to compare.
if (ROOT / ".git").exists() and shutil.which("git"):

    @pytest.mark.parametrize("path", ["api/opcodes.lock", "api/messages.lock"])
    def test_frames_keep_their_numbers(path: str) -> None:
        """Every committed version of the list is the beginning of the next, and the last of what stands there."""
        versions = [locked(text) for text in (*history(path), (ROOT / path).read_text())]
        # Numbers were given anew once, before anything was released.
        versions = [version for version in versions if (64, "kernel_function") not in version]
        for older, newer in pairwise(versions):
            assert newer[: len(older)] == older


# Generated code


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    done = run(
        *(sys.executable, "-m", "tensor_fusion.apigen", "--api", ROOT / "api", "--out", out),
        PYTHONPATH=str(ROOT / "src"),
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("flags", [[], SANITIZE], ids=["plain", "sanitized"])
def test_every_message_survives_the_wire(generated: Path, tmp_path: Path, flags: list[str]) -> None:
    """The generated test: predicted size, values after a round trip, truncation at every byte, of every message."""
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    if run(COMPILER or "", *flags, tmp_path / "empty.c", "-o", tmp_path / "empty").returncode:
        pytest.skip("this compiler has no sanitizers")
    program = tmp_path / "roundtrip"
    done = run(
        *(COMPILER or "", "-std=gnu17", "-D_GNU_SOURCE", "-O0", "-g1", "-fno-strict-aliasing", *flags),
        *(f"-I{folder}" for folder in (NATIVE / "base", NATIVE / "wire", generated)),
        *(generated / "tpg_roundtrip_test.c", "-o", program),
    )
    assert done.returncode == 0, done.stderr
    tested = run(program)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    count = re.fullmatch(r"(\d+) messages, 0 failures\n", tested.stdout)
    assert count and int(count[1]) > 400


# Documents


def fenced(mark: str) -> str:
    """The command in README.md in the fenced block behind a mark, as .ci/run reads it."""
    found = re.search(rf"^<!-- {mark} -->\n```sh\n(.+?)\n```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert found, f"README.md has no block behind <!-- {mark} -->"
    return found[1]


def test_readme_lines_are_one_line_and_tested() -> None:
    ci = (ROOT / ".ci/run").read_text()
    demo, tests = fenced("demo"), fenced("tests")
    assert "\n" not in demo and "\n" not in tests
    assert "readme_command tests" in ci and 'readme_command "deep tests"' in ci
    # What the demonstration does after installing; installing is what the tests' line does, too.
    installs, last = demo.rsplit(" && ", 1)
    assert last in ci.splitlines()
    for step in ("apt-get update", "python3-venv", "python3 -m venv .venv", ".venv/bin/pip install "):
        assert step in installs and step in tests
    assert tests.endswith(".venv/bin/python -m pytest -n 3 -m 'not deep'")
    assert fenced("deep tests").endswith(".venv/bin/python -m pytest -n 3 -m deep")


def test_readme_lists_the_commands() -> None:
    listed = set(re.findall(r"^\| `tensor-fusion ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert listed == names - {"version"}


def test_links_in_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
