"""The command tensor-fusion-worker."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from tensor_fusion.abi import Native, Teleport, native_file
from tensor_fusion.config import MEGABYTE, LogSettings, UserError, product_version
from tensor_fusion.terminal import complain, folded, limited, open_standard_files
from tensor_fusion.worker import images, jail, log
from tensor_fusion.worker.driver import Driver, choose_driver, session_environment
from tensor_fusion.worker.gpus import Sampler
from tensor_fusion.worker.metrics import Metrics
from tensor_fusion.worker.options import HELP, PROGRAM, Request, Settings, parse
from tensor_fusion.worker.protocol import PROTOCOL_VERSION
from tensor_fusion.worker.quota import QuotaPage
from tensor_fusion.worker.segment import Segment
from tensor_fusion.worker.service import notify_ready, notify_stopping
from tensor_fusion.worker.sessions import Executable, Session, Sessions
from tensor_fusion.worker.status import Status, StatusSocket
from tensor_fusion.worker.supervisor import Supervisor

# A serving session costs the supervisor one descriptor, a connection without a greeting another.
DESCRIPTORS = 8192
# Its own, those of a session that starts, and the up to nine connections of a client. With fewer it would serve until
# the client copies, and then say that a connection was closed.
FEWEST_DESCRIPTORS = 64
# Seconds between two looks at how long the log is; at full speed it grows by some 100 MB meanwhile.
LOG_LOOKED_AT = 1.0
SIMULATED_NOTICE = (
    "NOTICE: this worker uses the SIMULATED GPU of Tensor Fusion (--gpu sim): no real GPU computes anything, "
    "and only the few kernels it knows by name run."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker; returns the exit code."""
    open_standard_files()
    try:
        request = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
        if isinstance(request, Request):
            say(HELP if request.text == "help" else version_text())
            return 0
        log.configure(request.log)
        for notice in request.notices:
            complain(f"NOTICE: {notice}")
        for number in stop_signals():  # until the event loop takes them over
            signal.signal(number, _leave)
        if request.keys:
            keep_no_core()
        native = Teleport()
        executable = choose_executable(request, os.environ)
        segment = Segment(request.segment) if request.segment else None
        try:
            asyncio.run(run(request, native, replace(executable, segment=segment)))
        finally:
            if segment:
                segment.close()
    except UserError as error:
        complain(f"{PROGRAM}: {error.sentence}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        sentence = limited(error)
        if not sentence:
            raise
        complain(f"{PROGRAM}: {sentence}")
        return 1
    return 0


def keep_no_core() -> None:
    """No file gets the secrets when this process breaks. With a limit of 1 the kernel starts no program for it."""
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0) if most == 0 else (1, 1))


def say(text: str) -> None:
    """Raises UserError when the standard output takes nothing, as on a full disk."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        log.discard_output()
        raise UserError(f"The standard output cannot be written: {error.strerror}.", exit_code=1) from error


def _leave(number: int, frame: object) -> NoReturn:
    """Told to end before serving: what has been made of the segment goes."""
    sys.exit(128 + number)


def version_text() -> str:
    return f"{PROGRAM} {product_version()} (protocol {PROTOCOL_VERSION})\n"


def choose_executable(settings: Settings, environ: Mapping[str, str]) -> Executable:
    driver = choose_driver(settings.gpu, environ)
    if driver.simulated:
        complain(SIMULATED_NOTICE)
    environment = {**session_environment(environ), **settings.images.environment()}
    environment["TF_SESSION_MEMORY_LIMIT"] = str(settings.session_memory)
    environment["TF_CUDA_SM_PERCENT_LIMIT"] = str(settings.sm_percent)
    chosen = environ.get("TF_IMAGE_CACHE_PATH")
    # A session in the full jail cannot make it. Of one that nobody chose the log of sessions says that it is not used.
    if settings.images.folder and (chosen or settings.jail == "full"):
        reason = images.made(settings.images.folder)
        if reason and chosen:
            complain(f"NOTICE: images are not kept: TF_IMAGE_CACHE_PATH is {settings.images.folder}, and {reason}.")
    # Sessions write to the log's file themselves; where there is none, their lines go to where the worker's own go.
    output = 1 if settings.log.enabled and settings.log.path is None else 2
    tls = settings.keys is not None and settings.segment is None
    session = native_file("bin/tensor-fusion-session")
    calls = ""
    if settings.seccomp:
        calls, notice = jail.recorded(settings.seccomp, driver)
        if notice:
            complain(f"NOTICE: {notice}")
    return Executable(
        session,
        driver,
        environment,
        output=output,
        jail=settings.jail,
        layers=choose_layers(settings, session, driver, environment) if settings.jail == "full" else (),
        calls=calls,
        kernel_timeout=settings.kernel_timeout,
        tls=tls,
    )


def choose_layers(settings: Settings, session: Path, driver: Driver, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The layers of the full jail that this machine has; the others are said. Raises UserError if all are wanted."""
    layers = jail.probe(session, driver, environment)
    if lacking := jail.missing(layers):
        if settings.require_jail:
            raise UserError(
                f"--require-jail: this machine has not all of --jail full: {lacking}; "
                "tensor-fusion doctor --worker says more.",
                exit_code=1,
            )
        complain(f"NOTICE: sessions run without these layers of --jail full, which are not here: {lacking}.")
    return tuple(layer.name for layer in layers if layer.on)


def warm_line(count: int, session: Session) -> str:
    """What sessions that wait for a client cost, measured on the first."""
    host = session.host_memory()
    return (
        f"warm {count} session{'s' if count != 1 else ''}, each {host >> 20} MiB of host memory; with the first, "
        f"{session.device_memory >> 20} MiB of {session.device_name} are in use by all processes"
    )


def share_line(percent: int, part: int, whole: int) -> str:
    """What the steps of the hardware make of the limit, on the first device."""
    more = "" if part * 100 <= whole * percent else ", the least that this GPU can be divided into"
    return (
        f"each client works on {part} of {whole} multiprocessors ({100 * part / whole:.1f} %; TF_CUDA_SM_PERCENT_LIMIT "
        f"is {percent}{more})"
    )


def stop_signals() -> list[signal.Signals]:
    """The signals that end a worker, until it serves; then SIGHUP may mean another thing. nohup's worker ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


def has_terminal() -> bool:
    """Whether there is a terminal that controls this process; one that was closed is there no more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Hangup:
    """SIGHUP: the end of its terminal ends the worker. One that has none, or whose terminal is still there, is
    told that the log was moved away, or that the file of secrets was changed."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.reload: Callable[[], None] = lambda: None
        self._begun_on_terminal = has_terminal()

    def __call__(self) -> None:
        if self._begun_on_terminal and not has_terminal():
            self._stop()
        else:
            log.reopen()
            log.LOGGER.info("SIGHUP: the log is written to where its path leads, and secrets are read again")
            self.reload()


async def keep_bounded(settings: LogSettings) -> None:
    while True:
        log.bound(settings)
        await asyncio.sleep(LOG_LOOKED_AT)


async def first_session(sessions: Sessions, executable: Executable, require_jail: bool) -> Session:
    """The proof that this worker can serve. Raises UserError.

    NVIDIA's driver loads modules of the kernel and makes device files when it is used for the first time since the
    machine's start, by a program that needs privileges. So there the first session has them, and makes room for one in
    the jail before any client comes. Where the driver does not start in the full jail the basic one is tried, and where
    not in that one either it is served without a jail: each with a word.
    """
    if executable.driver.simulated or executable.jail == "off":
        return await sessions.first()
    sessions.jail = "off"
    free = await sessions.first()
    for name in ("full", "basic") if executable.jail == "full" else ("basic",):
        sessions.jail = name
        try:
            jailed = await sessions.first()
        except UserError as error:
            if require_jail:
                raise UserError(
                    f"--require-jail: in the {name} jail the driver does not start: {error.sentence}", exit_code=1
                ) from error
            instead = "in the basic jail" if name == "full" else "without a jail"
            complain(f"NOTICE: sessions run {instead}: in the {name} one the driver does not start: {error.sentence}")
        else:
            sessions.end(free)
            return jailed
    sessions.jail = "off"
    return free


async def run(settings: Settings, native: Native, executable: Executable) -> None:
    """Serve until SIGTERM, SIGINT or the end of the terminal, then leave nothing running."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < FEWEST_DESCRIPTORS:
        raise UserError(
            f"There are too few descriptors (a worker with one client needs {FEWEST_DESCRIPTORS}; ulimit -n allows "
            f"{hard}); raise it, for example: ulimit -n {DESCRIPTORS}",
            exit_code=1,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    stopping = stop_signals()
    hangup = Hangup(stop.set)
    for number in stopping:
        loop.add_signal_handler(number, hangup if number == signal.SIGHUP else stop.set)
    page = QuotaPage(settings.memory_limit)
    sessions = Sessions(executable, page, settings.warm)
    if executable.jail == "full" and settings.images.folder:
        sessions.images = images.Images(settings.images.folder, settings.images.megabytes * MEGABYTE)
    sessions.install()
    supervisor = Supervisor(settings, native, sessions, executable.segment)
    hangup.reload = supervisor.reload
    gpus = Sampler(executable.driver.nvml, lambda: sessions.devices)
    status = Status(sessions, supervisor, gpus, simulated=executable.driver.simulated, limit=settings.memory_limit)
    socket = StatusSocket(status, os.environ)
    metrics = Metrics(settings.metrics, status) if settings.metrics else None
    stopped = loop.create_task(stop.wait())
    bounding = loop.create_task(keep_bounded(settings.log))
    try:
        starting = loop.create_task(first_session(sessions, executable, settings.require_jail))
        await asyncio.wait({stopped, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        first = starting.result()
        if settings.keys:
            settings.keys.devices_are(first.devices)
        failures: list[str] = []

        def fail(sentence: str) -> None:
            failures.append(sentence)
            stop.set()

        supervisor.start(fail)
        await socket.start()
        if metrics:
            await metrics.start()
        count = f"{first.devices} GPU{'s' if first.devices != 1 else ''}"
        ready = f"ready {supervisor.place} ({first.device_name}, {count})\n"
        say(ready + (f"{folded(warm_line(settings.warm, first))}\n" if settings.warm else ""))
        if first.multiprocessors[0]:
            say(f"{folded(share_line(settings.sm_percent, *first.multiprocessors))}\n")
        if metrics:
            say(f"metrics {metrics.place}\n")
        notify_ready(ready.strip())
        sessions.top_up()
        sessions.discard_surplus()
        await stopped
        log.LOGGER.info("stopping")
        notify_stopping()
        if failures:
            raise UserError(failures[0], exit_code=1)
    finally:
        stopped.cancel()
        bounding.cancel()
        socket.close()
        if metrics:
            metrics.close()
        await supervisor.close()
        await sessions.close()
        page.close()
        # The handlers go with the event loop; a second signal in the last moments must not make this end a failure.
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
        for number in stopping:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
