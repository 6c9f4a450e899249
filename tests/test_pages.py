"""The pages for users, in English and Chinese: what they tell to type works, what they quote is what our code says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pages
import pytest
import release
import typer
from pages import CHINESE, DOCS, NAMES, ROOT, Block
from stack.harness import clean_environment

from tensor_fusion.abi import native_file
from tensor_fusion.cli.main import app
from tensor_fusion.client.causes import CAUSES, explain
from tensor_fusion.client.vm import RULE_FILE, instructions
from tensor_fusion.config import VARIABLES
from tensor_fusion.worker import options, service

ENGLISH = [DOCS / f"{name}.md" for name in NAMES]
# Why a command is not run here: each block without a mark has one of these words.
NOT_HERE = {
    r"\bpipx? ": "takes packages from the network",
    r"\bsudo\b": "is for root",
    r"\bdocker ": "needs Docker",
    r"\bssh ": "needs another machine",
    r"--shmem-group kvm": "is for who is in that group",
    r"/sys/bus/pci|\bvm --check$": "is for a guest",
    r"\bcp tensor-fusion-worker ": "is for the release's one file",
}
# Of the unit's configuration, of the build, and of compose.
OTHER_VARIABLES = {"TF_WORKER_OPTIONS", "TF_BUILD_COMPILER"}
TIME = 25


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Both languages


@pytest.mark.parametrize("name", NAMES)
def test_the_chinese_page_has_the_same_commands(name: str) -> None:
    english, chinese = DOCS / f"{name}.md", CHINESE / f"{name}.md"
    assert pages.blocks(chinese) == pages.blocks(english)
    assert [level for level, _ in pages.headings(chinese)] == [level for level, _ in pages.headings(english)]
    # Of a sentence of ours all but the column that says why.
    quoted = [
        [[*row[:2], *row[3:]] if len(row) == 4 else row[:1] for row in pages.rows(page)] for page in (english, chinese)
    ]
    assert quoted[1] == quoted[0]
    # And in each section as many paragraphs, rows and points, which name the same things.
    assert pages.sections(chinese) == pages.sections(english)


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    documents = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    assert len(documents) > 15
    for page in documents:
        for file, anchor in pages.links(page):
            target = page.parent / file if file else page
            assert target.exists(), f"{name_of(page)} links to {file}"
            if anchor and target.suffix == ".md":
                assert anchor in pages.anchors(target), f"{name_of(page)} links to {file}#{anchor}"


# Commands


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_a_command_is_run_or_cannot_be_run_here(page: Path) -> None:
    for block in pages.blocks(page):
        if block.language == "sh" and not block.mark:
            assert any(re.search(word, block.text, re.MULTILINE) for word in NOT_HERE), block.text


@contextmanager
def started(command: str, env: dict[str, str], folder: Path) -> Iterator[str]:
    """A worker that runs meanwhile, and its first line."""
    process = subprocess.Popen(
        ["bash", "-c", f"{command} 2>worker.err"],
        env=env,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        ready = process.stdout.readline()
        assert ready.startswith("ready "), (folder / "worker.err").read_text()
        yield ready
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def script(blocks: list[tuple[int, Block]], given: dict[str, str]) -> str:
    """The blocks of a section in one shell, each with its output in a file of its own."""
    lines = ["set -uo pipefail"]
    for number, block in blocks:
        text = substituted(block.text, given)
        if block.mark == "run fails":
            lines += [f"{{ {text}\n}} > out.{number} 2>&1", "[ $? = 1 ] || exit 1"]
        else:
            lines += [f"{{ set -e\n{text}\nset +e; }} > out.{number} 2>&1"]
    return "\n".join(lines)


def substituted(text: str, given: dict[str, str]) -> str:
    for word, value in given.items():
        text = text.replace(word, value)
    return text


def expect(wanted: str, output: str) -> None:
    lines = iter(output.splitlines())
    for line in wanted.splitlines():
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert any(re.fullmatch(pattern, seen) for seen in lines), f"no line like {line!r} in:\n{output}"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's archive of the client files, made as the release makes it."""
    folder = tmp_path_factory.mktemp("release")
    with zipfile.ZipFile(folder / "files.whl", "w") as wheel:
        for name in release.CLIENT:
            wheel.write(native_file(f"client/{name}.so.1"), f"tensor_fusion/_native/client/{name}.so.1")
    release.client(folder / "files.whl", "1", folder / "out")
    (made,) = (folder / "out").glob("*.tar.gz")
    return made


# Where a page is tried: a folder, the environment of its shell, and what the page's words stand for here.
Place = tuple[Path, dict[str, str], dict[str, str]]


@pytest.fixture
def place(tmp_path: Path, segment_name: str, archive: Path) -> Place:
    """A folder with the release's archive, a user's environment with our commands on the simulated GPU, and what the
    words of the pages stand for here."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (
        ("python3", ""),
        ("tensor-fusion", "-m tensor_fusion"),
        ("tensor-fusion-worker", "-m tensor_fusion.worker --gpu sim --warm 0"),
    ):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(archive, folder)
    env = clean_environment(HOME=str(folder))
    env = {name: value for name, value in env.items() if name != "XDG_CACHE_HOME" and not name.startswith("CUDA_")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return (
        folder,
        {**env, "PATH": f"{commands}:{env['PATH']}"},
        {
            "192.168.1.100": "127.0.0.1",
            "12345": port,
            "/my_shm": segment_name,
        },
    )


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_commands_do_what_the_page_says(page: Path, place: Place) -> None:
    folder, env, given = place
    blocks = list(enumerate(pages.blocks(page)))
    outputs: dict[int, str] = {}
    with ExitStack() as workers:
        for section in sorted({block.section for _, block in blocks}):
            here: list[tuple[int, Block]] = []

            def run(here: list[tuple[int, Block]]) -> None:
                if here:
                    done = subprocess.run(
                        ["bash", "-c", script(here, given)], env=env, cwd=folder, timeout=TIME, check=False
                    )
                    outputs.update({n: p.read_text() for n, _ in here if (p := folder / f"out.{n}").exists()})
                    assert done.returncode == 0, outputs
                    here.clear()

            for number, block in blocks:
                if block.section != section:
                    continue
                if block.mark == "start":
                    run(here)
                    ready = workers.enter_context(started(substituted(block.text, given), env, folder))
                    outputs[number] = ready
                elif block.mark in ("run", "run fails"):
                    here.append((number, block))
            run(here)
    assert outputs
    for number, block in blocks:
        if block.mark == "prints":
            expect(substituted(block.text, given), outputs[number - 1])


def test_marks_are_known() -> None:
    known = {"", "start", "run", "run fails", "prints", "vm: qemu", "vm: libvirt", "vm: client"}
    used = {block.mark for page in ENGLISH for block in pages.blocks(page)}
    assert used == known


def test_what_a_guest_needs_is_what_the_command_prints() -> None:
    texts = instructions("/my_shm", 256, "video")
    for block in pages.blocks(DOCS / "virtual-machines.md"):
        plain = " ".join(block.text.replace("\\\n", " ").split())
        if block.mark == "vm: qemu":
            assert plain.endswith(texts.qemu)
        elif block.mark == "vm: libvirt":
            assert block.text == texts.libvirt
        elif block.mark == "vm: client":
            assert block.text == texts.client
    assert RULE_FILE in (DOCS / "virtual-machines.md").read_text()


def test_options_are_those_of_the_commands() -> None:
    group = typer.main.get_command(app)
    known = {"": {option for parameter in group.params for option in parameter.opts}}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        known[name] = {option for parameter in command.params for option in parameter.opts}
    worker = set(options._parser()._option_string_actions)
    seen = 0
    for page in [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if page.name != "plan.md")]:
        texts = [block.text for block in pages.blocks(page) if block.language == "sh"] + pages.inline_code(page)
        for call in (call for text in texts for call in pages.commands(text)):
            name, *words = call
            before = words[: words.index("--")] if "--" in words else words
            given = {word.partition("=")[0] for word in before if re.match(r"--?[a-zA-Z]", word)}
            if name == "tensor-fusion-worker":
                assert given <= worker, (page.name, call)
                continue
            subcommand = words[0] if words and not words[0].startswith("-") else ""
            if subcommand in ("…", "…)"):
                continue
            assert subcommand in known, (page.name, call)
            assert given <= known[subcommand] | {"-h", "--help"}, (page.name, call)
            seen += 1
    assert seen > 40


def test_variables_are_those_of_the_product() -> None:
    known = {variable.name for variable in VARIABLES} | OTHER_VARIABLES
    for page in [ROOT / "README.md", *ENGLISH, *CHINESE.glob("*.md")]:
        used = set(re.findall(r"\b(?:TF|TENSOR_FUSION)_[A-Z_]+\b", page.read_text()))
        assert used <= known, page.name


# Sentences


def test_quoted_sentences_stand_in_the_source() -> None:
    source = pages.source_strings()
    quoted = [row[0] for row in pages.rows(DOCS / "troubleshooting.md") if len(row) in (2, 4)]
    assert len(quoted) > 90
    strange = []
    for sentence in quoted:
        parts = [part for part in sentence.split("…") if len(part.strip(" .,;:()")) > 1]
        assert parts and max(map(len, parts)) >= 11, sentence
        strange += [f"{part!r} of {sentence!r}" for part in parts if not pages.stands_in(part, source)]
    assert not strange, "in no string of ours:\n" + "\n".join(strange)


def test_a_sentence_that_nobody_says_is_noticed() -> None:
    source = pages.source_strings()
    assert "Nothing listens at " in source and "Nobody listens at " not in source
    assert "; check that tensor-fusion-worker runs there and that the port is open." in source
    assert pages.stands_in("; start it there: tensor-fusion-worker -n native -p ", source)
    assert not pages.stands_in("; begin it there: tensor-fusion-worker -n native -p ", source)
    assert not pages.stands_in("; start it here: tensor-fusion-worker -n native -p ", source)


def test_causes_are_those_of_doctor() -> None:
    named = [row for row in pages.rows(DOCS / "troubleshooting.md") if len(row) == 4]
    assert {row[1] for row in named} == {cause.name for cause in CAUSES}
    commands = {cause.name: explain_command(cause.name) for cause in CAUSES}
    for sentence, name, _, command in named:
        assert command.strip("`") == commands[name], name
        # As a program says it, doctor need not know it; if it does, it means the same.
        filled = re.sub("…", "7", sentence)
        assert explain(filled, {})[0] in (name, ""), sentence


def explain_command(name: str) -> str:
    class Word(dict[str, str]):
        def __missing__(self, key: str) -> str:
            return key.upper()

    return next(cause.command.format_map(Word()) for cause in CAUSES if cause.name == name)


def test_the_tests_that_a_page_names_are_there() -> None:
    """A fault of the first trial is kept away by these."""
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", (DOCS / "fresh-machines.md").read_text())
    assert len(named) > 30
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


# The images, and the second unit


def test_images_take_debian_and_pypi_alone() -> None:
    folder = ROOT / "packaging/docker"
    dockerfile = (folder / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, flags=re.MULTILINE))
    assert {"worker", "client"} <= stages
    assert set(re.findall(r"^FROM (\S+)", dockerfile, flags=re.MULTILINE)) <= {"${BASE}", *stages}
    assert re.findall(r"^ARG BASE=(\S+)$", dockerfile, flags=re.MULTILINE) == ["debian:trixie-slim"]
    for path in folder.iterdir():
        assert "://" not in path.read_text(), path.name
    for target in re.findall(r"target: (\w+)", (folder / "compose.yaml").read_text()):
        assert target in stages


def test_the_second_unit_has_folders_of_its_own() -> None:
    """The line of sed in operations.md, on the unit that the command writes."""
    (text,) = re.findall(r"^sed '([^']+)' ", (DOCS / "operations.md").read_text(), flags=re.MULTILINE)
    unit = service.unit(Path("/opt/tensor-fusion/bin/tensor-fusion-worker"))
    made = subprocess.run(["sed", text], input=unit, capture_output=True, text=True, check=True).stdout
    changed = sorted(set(made.splitlines()) - set(unit.splitlines()))
    assert changed == [
        "CacheDirectory=tensor-fusion-%i",
        "Environment=XDG_CACHE_HOME=%C/tensor-fusion-%i",
        "EnvironmentFile=-/etc/tensor-fusion/%i.conf",
        "LogsDirectory=tensor-fusion-%i",
        "RuntimeDirectory=tensor-fusion-%i",
    ]
