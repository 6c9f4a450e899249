"""The generator: what it makes of a small API, and what it says of lines that cannot be.

tests/apigen/api is a whole API of ten functions. Each file of tests/apigen/rejected is one bad line, which takes the
place of the good one for its name; its docstring is the sentence that the build ends with. Files of tests/apigen/golden
are what the generator makes of the small API; TF_UPDATE_GOLDEN=1 writes them anew, for a reader of the difference.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tensor_fusion.apigen import senders
from tensor_fusion.apigen.__main__ import outputs
from tensor_fusion.apigen.layout import DescriptionError
from tensor_fusion.apigen.layouts import layouts
from tensor_fusion.apigen.model import load

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests/apigen"
REJECTED = sorted((HERE / "rejected").glob("*.py"))
GOLDEN = (
    *("tpg_ops.h", "tpg_cuda_stubs.c", "tpg_cuda_entries.c", "tpg_cuda_trace.h", "tpg_cuda_send.h"),
    *("tpg_client_structs.h", "tpg_session.h", "tpg_session_structs.h", "tpg_dispatch.c"),
    "tpg_nvml_stubs.c",
    "tpg_cuda_looks.c",
)


def check(api: Path) -> None:
    """What a build does with descriptions."""
    model = load(api, extend_lock=True)
    layouts(model)
    senders.check(model, HERE / "client")


def without(api: Path, names: set[str]) -> None:
    """Takes the lines for `names` out of the small API, whose every entry is one statement of a list."""
    for path in (api / "cuda").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.List):
                node.elts = [e for e in node.elts if isinstance(e, ast.Call) and not named(e) & names]
        path.write_text(ast.unparse(tree))


def described(path: Path) -> set[str]:
    """The names that a bad file has lines for."""
    lists = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.List)]
    return {name for found in lists for e in found.elts if isinstance(e, ast.Call) for name in named(e)}


def named(line: ast.Call) -> set[str]:
    """The names that a line is for: behind the code and the reason, where it has those."""
    refused = isinstance(line.func, ast.Name) and line.func.id == "refused"
    return {str(ast.literal_eval(a)) for a in (line.args[2:] if refused else line.args[:1])}


def test_small_api_is_accepted(tmp_path: Path) -> None:
    shutil.copytree(HERE / "api", tmp_path / "api")
    check(tmp_path / "api")


def test_there_are_bad_lines() -> None:
    assert len(REJECTED) >= 45


@pytest.mark.parametrize("path", REJECTED, ids=lambda path: path.stem)
def test_bad_line_is_refused_with_its_place(path: Path, tmp_path: Path) -> None:
    api = tmp_path / "api"
    shutil.copytree(HERE / "api", api)
    without(api, described(path))
    shutil.copy(path, api / "cuda/bad.py")
    with pytest.raises(DescriptionError) as refused:
        check(api)
    assert str(refused.value) == ast.get_docstring(ast.parse(path.read_text()))


def test_build_says_it_and_fails(tmp_path: Path) -> None:
    bad = HERE / "rejected/unknown_kind.py"
    shutil.copytree(HERE / "api", tmp_path / "api")
    without(tmp_path / "api", described(bad))
    shutil.copy(bad, tmp_path / "api/cuda/bad.py")
    done = subprocess.run(
        [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(tmp_path / "api"), "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"{ast.get_docstring(ast.parse(bad.read_text()))}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", GOLDEN)
def test_generated_text_is_as_it_was(name: str) -> None:
    text = outputs(load(HERE / "api"))[name]
    golden = HERE / "golden" / f"{name}.txt"
    if os.environ.get("TF_UPDATE_GOLDEN") == "1":
        golden.write_text(text)
    assert text == golden.read_text()


def test_ops_of_the_real_api_are_true() -> None:
    senders.check(load(ROOT / "api"), ROOT / "native/client")


def test_page_shows_real_lines_and_real_sentences() -> None:
    """Each mistake of docs/adding-a-function.md is a file of tests/apigen/rejected, with its line and its sentence."""
    text = (ROOT / "docs/adding-a-function.md").read_text()
    shown = re.findall(r"\n    (\S[^\n]*),\n\n<!-- rejected: (\w+) -->\n    ([^\n]*)\n", text)
    assert len(shown) >= 3
    for line, name, sentence in shown:
        bad = (HERE / f"rejected/{name}.py").read_text()
        assert line in bad
        assert ast.get_docstring(ast.parse(bad)) == sentence


def test_figures_are_printed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/figures.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = {line[:39].strip(): float(line[39:]) for line in done.stdout.splitlines()}
    assert figures["names that the driver exports"] == 674
    # What stands; docs/plan.md has what is wanted.
    assert figures["generated from end to end"] >= 138
    assert figures["of that for each served function"] <= 72.0


RUN = 'op("foo_run", "post", stream="uint64_t: handle stream", count="unsigned int")'
OTHERS = {
    "another field": RUN.replace('count="unsigned int"', 'count="unsigned int", more="unsigned int"'),
    "one field less": RUN.replace(', count="unsigned int"', ""),
    "another size": RUN.replace('count="unsigned int"', 'count="uint64_t"'),
    "another kind of handle": RUN.replace("handle stream", "handle foo"),
    "a handle that may be none": RUN.replace("handle stream", "handle? stream"),
    "another meaning": RUN.replace('"post"', '"post", edition=2'),
    "a struct in its bytes": RUN.replace('"post"', '"post", carries="tp_traced"'),
    "a message that comes of it": RUN.replace('"post"', '"post", brings="foo_over"'),
    "a result": RUN.replace('"post"', '"call"').replace(
        'count="unsigned int"', 'count="unsigned int", out={"a": "int"}'
    ),
}
SAME = {
    "the same": RUN,
    "waited for": RUN.replace('"post"', '"call"'),
    "without a context": RUN.replace('"post"', '"post", contextless=True'),
    "looked up by hand": RUN.replace("handle stream", "name stream"),
}


def layout(folder: Path, line: str, over: str = 'message("foo_over", token="uint64_t")') -> int:
    """Of foo_run, as that line has it; `over` is a message beside it."""
    folder.mkdir()
    api = folder / "api"
    shutil.copytree(HERE / "api", api)
    (folder / "native").symlink_to(ROOT / "native")
    without(api, {"foo_run"})
    text = f"from tensor_fusion.apigen.describe import message, op\n\nFUNCTIONS = [{line}, {over}]\n"
    (api / "cuda/other.py").write_text(text)
    return next(row.hash for row in layouts(load(api, extend_lock=True)) if row.name == "foo_run")


def test_a_layout_is_what_makes_bytes_differ(tmp_path: Path) -> None:
    usual = layout(tmp_path / "usual", RUN)
    for number, (what, line) in enumerate(SAME.items()):
        assert layout(tmp_path / f"same{number}", line) == usual, what
    found = {what: layout(tmp_path / f"other{number}", line) for number, (what, line) in enumerate(OTHERS.items())}
    assert len({usual, *found.values()}) == 1 + len(OTHERS), found


def test_a_layout_has_that_of_the_messages_that_it_brings(tmp_path: Path) -> None:
    line = OTHERS["a message that comes of it"]
    changed = 'message("foo_over", token="uint64_t", status="int")'
    assert layout(tmp_path / "one", line) != layout(tmp_path / "other", line, changed)
    assert layout(tmp_path / "usual", RUN) == layout(tmp_path / "untouched", RUN, changed)
