"""The command tensor-fusion."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tensor_fusion.cli import report
from tensor_fusion.client.files import client_environment, client_folder
from tensor_fusion.config import (
    CONNECTION_INFO,
    CONNECTION_URL,
    DEFAULT_MEGABYTES,
    UserError,
    parse_connection,
    product_version,
    without_secret,
)
from tensor_fusion.terminal import complain, folded, limited, open_standard_files, show_every_character

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run CUDA programs on a GPU in another machine.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Connect = Annotated[
    str | None,
    typer.Option(
        help=f"Worker: native+HOST+PORT+VERSION[+SECRET] or shmem+FILE+MB+VERSION[+SECRET]; else {CONNECTION_INFO}.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Preload = Annotated[bool, typer.Option("--preload", help="Also set LD_PRELOAD.")]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number") from None


class Gpu(str, Enum):
    NVIDIA = "nvidia"
    SIM = "sim"


class Transport(str, Enum):
    TCP = "tcp"
    SHMEM = "shmem"


class Api(str, Enum):
    CUDA = "cuda"
    NVML = "nvml"


def checked_connection(connection: str | None) -> str | None:
    """The connection string to set, or None when the environment names the worker already. Raises UserError."""
    given = connection if connection is not None else os.environ.get(CONNECTION_INFO, "")
    if not given and connection is None:
        if os.environ.get(CONNECTION_URL):
            return None
        raise UserError(f"No worker is named; pass --connect native+HOST+PORT+0, or set {CONNECTION_INFO}.")
    parse_connection(given)
    return given.strip()


def _version(asked: bool) -> None:
    if asked:
        print(f"tensor-fusion {product_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-v", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version  # its callback has answered
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    short_help="Run a program, and whatever it starts, on a worker's GPU.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[
        list[str], typer.Argument(help="Program and its arguments.", metavar="PROGRAM", show_default=False)
    ],
    connect: Connect = None,
    preload: Preload = False,
) -> None:
    """Run a program, and whatever it starts, on a worker's GPU."""
    if command[0].startswith("--") and command[0] != "--":
        raise UserError(
            f"Unknown option {command[0]!r}; write the program after --, as in: run --connect … -- python app.py"
        )
    if re.match(r"(native|shmem)\+", command[0]):
        raise UserError(f"A connection string follows --connect: --connect {without_secret(command[0])}")
    changed = client_environment(checked_connection(connect), os.environ, preload)
    # Python ignores these two, and what is ignored stays so in the program: in a shell, yes | head would complain.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, {**os.environ, **changed})
    except (FileNotFoundError, ValueError):  # ValueError: an empty name
        raise UserError(f"The program {command[0]!r} was not found; check its name and PATH.", exit_code=127) from None
    except OSError as error:
        raise UserError(f"The program {command[0]!r} cannot be run: {error.strerror}.", exit_code=126) from None


@app.command(short_help="Print the shell commands that set up a shell.")
def env(connect: Connect = None, preload: Preload = False) -> None:
    """Print the shell commands that set up a shell: eval "$(tensor-fusion env --connect STRING)"."""
    for name, value in client_environment(checked_connection(connect), os.environ, preload).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command(short_help="Print the folder of the client files.", name="lib-path")
def lib_path() -> None:
    """Print the folder of the client files; it also works when copied to a machine without Python."""
    print(client_folder())


@app.command(short_help="Copy the client files to where the loader finds them.")
def install(
    prefix: Annotated[Path, typer.Option(help="Below it, the files go into the library folder.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the files away again.")] = False,
) -> None:
    """Copy the client files to where the loader finds them; what is not ours is never overwritten."""
    from tensor_fusion.client import install as files

    if remove:
        for path in files.remove(prefix):
            print(f"removed {path}")
        return
    done = files.install(prefix)
    print(f"installed the client files in {done.folder}")
    if not done.found_by_loader:
        print("The loader does not look there by itself; in the shell of the program:")
        print(f"export LD_LIBRARY_PATH={shlex.quote(str(done.folder))}")


@app.command(short_help="Start a worker, and run a CUDA program against it.")
def demo(
    gpu: Annotated[Gpu | None, typer.Option(help="GPU; by default a real one if there is one.")] = None,
    transport: Annotated[Transport, typer.Option(help="Transport to the worker.")] = Transport.TCP,
    as_json: Json = False,
) -> None:
    """Start a worker, run a CUDA program against it, print what happened."""
    from tensor_fusion.cli.progress import Waiting
    from tensor_fusion.demo.run import demo as demonstrate

    _end_in_order()

    def notice(text: str) -> None:
        complain(f"NOTICE: {text}")

    result = demonstrate(gpu.value if gpu else None, transport.value, notice, Waiting("demo"))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        report.demo(result)
    if not result["passed"]:
        raise UserError("The GPU computed wrong results; please report this with the output above.", exit_code=1)


@app.command(
    short_help="Measure native and remote; count a program's round trips.",
    context_settings={"allow_interspersed_args": False},
)
def bench(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="Program to count the round trips of, instead.", metavar="PROGRAM", show_default=False),
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(help="Worker: native+HOST+PORT+VERSION[+SECRET]; by default one is started.", show_default=False),
    ] = None,
    transport: Annotated[Transport, typer.Option(help="Transport to the worker that is started.")] = Transport.TCP,
    shmem_size: Annotated[
        int, typer.Option(help="MB of the shared memory of the worker that is started.", parser=_whole, metavar="<int>")
    ] = 1024,
    gpu: Annotated[Gpu | None, typer.Option(help="Driver of the native side and of the worker started.")] = None,
    rtt: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds that a relay adds to each round trip.",
            show_default=False,
            parser=_number,
            metavar="<float>",
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="Alternating runs of native and remote.", parser=_whole, metavar="<int>")
    ] = 5,
    only: Annotated[
        str | None, typer.Option(help="Groups to measure, separated by commas.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A fraction of the calls: does it work?")] = False,
    no_native: Annotated[bool, typer.Option("--no-native", help="Measure the remote side alone.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the whole report.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Prefix of plot files, PNG and SVG.", show_default=False)] = None,
) -> None:
    """Measure native and remote in turn on one GPU; or count the round trips of a program: bench -- python app.py"""
    from tensor_fusion.bench import run as benchmark
    from tensor_fusion.cli import bench_report
    from tensor_fusion.cli.progress import Steps

    _end_in_order()
    request = benchmark.Request(
        connection=None if connect is None else connect.strip(),
        transport=transport.value,
        shmem_megabytes=shmem_size,
        gpu=gpu.value if gpu else None,
        rtt_ms=rtt,
        pairs=pairs,
        only=only,
        quick=quick,
        native=not no_native,
        json_file=json_file,
        plot_prefix=plot,
        command=command or (),
    )
    steps = Steps("bench")
    if command:
        counted = benchmark.count(request, steps.say)
        bench_report.census(counted)
        benchmark.save_count(request, counted)
        raise typer.Exit(counted["exit_code"])
    with steps.shown():
        result = benchmark.bench(request, steps.say, steps.step)
    bench_report.comparison(result)
    for path in benchmark.save(request, result, steps.say):
        print(f"Wrote {path}")
    if not result["identical"]:
        raise UserError(
            f"Results differ between runs or sides in {', '.join(result['different'])}; "
            "please report this with the output above.",
            exit_code=1,
        )


@app.command(
    short_help="Write a program's CUDA calls as a timeline for Perfetto.",
    context_settings={"allow_interspersed_args": False},
)
def trace(
    command: Annotated[
        list[str], typer.Argument(help="Program and its arguments.", metavar="PROGRAM", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="File for the timeline.")] = Path("trace.json"),
    connect: Connect = None,
) -> None:
    """Write the CUDA calls of a program and its children as a timeline for Perfetto: trace -o FILE -- python app.py"""
    from tensor_fusion.timeline import record

    _end_in_order()
    recorded = record(checked_connection(connect), command, out)
    for line in recorded.notices():
        complain(line)
    raise typer.Exit(recorded.exit_code)


@app.command(short_help="Decode what was on the wire, one line for each frame.")
def dump(
    capture: Annotated[Path, typer.Argument(help="Of tcpdump, or a copy of a segment.", show_default=False)],
) -> None:
    """Decode what was on the wire, one line for each frame: a file of tcpdump, or a copy of a shared segment."""
    from tensor_fusion.dump.command import dump as decode

    _end_in_order()
    for line in decode(capture):
        print(line)


@app.command(short_help="Count the API functions by how they are served.")
def coverage(
    as_json: Json = False,
    api: Annotated[Api | None, typer.Option(help="One API; by default both.")] = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Also name what is not supported, and why.")] = False,
) -> None:
    """Print how many functions of the CUDA driver API and of NVML are there, and how."""
    table = report.read_coverage()
    if api:
        table = {api.value: table[api.value]}
    if as_json:
        print(json.dumps(table, indent=1))
    else:
        report.coverage(table, reasons=reasons)


class Action(str, Enum):
    INSTALL = "install"
    STATUS = "status"
    REMOVE = "remove"


@app.command(short_help="The worker as a service of systemd: install, status, remove.")
def service(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    root: Annotated[Path, typer.Option(help="Another root than this machine's, for images.")] = Path("/"),
) -> None:
    """The worker as a service of systemd: its own user, hardened, started at boot."""
    from tensor_fusion.worker import service as unit

    if action is Action.INSTALL:
        lines = unit.install(root, unit.worker_command())
    else:
        lines = unit.status(root) if action is Action.STATUS else unit.remove(root)
    print("\n".join(folded(line, "  ") for line in lines))


@app.command(short_help="Show the workers of this machine and their clients.")
def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once; where no terminal is, that is all.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, once.")] = False,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks.", parser=_number, metavar="<float>")
    ] = 2.0,
) -> None:
    """Show the workers of this machine, their clients, and what these hold and ask for; q or Ctrl-C ends it."""
    from tensor_fusion.cli import top as view
    from tensor_fusion.cli.progress import Waiting
    from tensor_fusion.runtime import statuses

    if interval < 0.1:
        raise UserError("--interval is less than 0.1; looking costs the worker a little each time.")
    if as_json:
        found, problems = statuses(os.environ, Waiting("top", in_pipes=True))
        print(json.dumps({"workers": found, "problems": problems}, indent=1))
    elif once or not view.on_terminal():
        view.once(os.environ)
    else:
        view.watch(os.environ, interval)


@app.command(short_help="Find out why it does not work, with what to do next.")
def doctor(
    connect: Connect = None,
    as_json: Json = False,
    worker: Annotated[
        bool, typer.Option("--worker", help="Instead: which layers of --jail full a worker of this machine has.")
    ] = False,
) -> None:
    """Find out why it does not work: each step from the files to the device list, with what to do next."""
    from tensor_fusion.cli.progress import Waiting
    from tensor_fusion.client.doctor import examine
    from tensor_fusion.worker import jail

    if worker and connect is not None:
        raise UserError("--worker looks at this machine; leave --connect out.")
    checks = jail.examine(os.environ) if worker else examine(connect, Waiting("doctor"))
    if not report.checks(checks, as_json):
        raise typer.Exit(1)


@app.command(short_help="Print what a virtual machine needs for shared memory.")
def vm(
    shmem_file: Annotated[
        str | None, typer.Option("-m", "--shmem-file", help="Segment, as for the worker.", show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "-M", "--size", "--shmem-size", help="Its size in MB; 256 by default.", parser=_whole, metavar="<int>"
        ),
    ] = None,
    group: Annotated[str, typer.Option(help="Group of the guest's users that may use the GPU.")] = "video",
    checking: Annotated[
        bool, typer.Option("--check", help="In the guest, or on the host with -m: find out whether it works.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what a virtual machine needs for shared memory: QEMU, libvirt, udev, environment; --check tries it out."""
    if checking:
        from tensor_fusion.cli.progress import Waiting
        from tensor_fusion.client.vmcheck import examine

        if not report.checks(examine(shmem_file, size, waiting=Waiting("vm")), as_json):
            raise typer.Exit(1)
        return
    from tensor_fusion.client.vm import instructions

    texts = instructions(shmem_file or "/my_shm", DEFAULT_MEGABYTES if size is None else size, group)
    report.instructions(texts, as_json)


@app.command(short_help="Print every environment variable, its meaning and value.")
def config(as_json: Json = False) -> None:
    """Print every environment variable with its meaning, its default and its present value."""
    report.variables(os.environ, as_json)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"tensor-fusion {product_version()}")


def _end_in_order() -> None:
    """When SIGTERM or the end of the terminal ends the command, what it started is stopped first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _discard_output() -> None:
    """What is left in the buffer goes nowhere, as the interpreter would fail on it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(sentence: str, code: int) -> NoReturn:
    complain(f"tensor-fusion: {sentence}")
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; ends the process. Whatever is wrong with the input is one sentence and an exit code."""
    open_standard_files()
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_every_character()
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    try:
        if given[:1] == ["bench"] and given[-1] == "--":
            # To the parser the same as no --, and so a benchmark that nobody asked for.
            raise UserError("There is no program after --, as in: tensor-fusion bench -- python app.py")
        result = app(args=given, standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(error.sentence, error.exit_code)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except (BrokenPipeError, SystemExit) as error:
        # The reader has gone, as in: tensor-fusion config | head -1. What typer sees of it becomes an exit with 1.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _discard_output()
        sys.exit(141)
    except Exception as error:
        sentence = limited(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
            _discard_output()
            sentence = sentence or f"The output cannot be written: {error.strerror}."
        if sentence:
            _fail(sentence, 1)
        # typer's usage errors have no common public class; they can all format themselves.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        # Some versions of typer put that before what is wrong.
        text = " ".join(str(describe()).split()).rstrip(".").replace("Value error, ", "")
        if not text:
            sys.exit(getattr(error, "exit_code", 2))
        if "unexpected extra argument" in text and (string := re.search(r"\b(native|shmem)\+[^\s)]+", text)):
            text = f"A connection string follows --connect: --connect {without_secret(string[0])}"
        if re.match(r"No such command '(worker|server?|start|listen)'", text):
            text = "The worker is a command of its own: tensor-fusion-worker -n native -p 12345"
        context = getattr(error, "ctx", None)
        command = f" {context.info_name}" if context and context.parent else ""
        _fail(f"{text}{' See' if text.endswith('?') else '; see'} tensor-fusion{command} --help.", 2)
    sys.exit(result if isinstance(result, int) else 0)
