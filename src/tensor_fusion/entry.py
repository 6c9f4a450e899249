"""Where both commands begin: Ctrl-C ends them without a traceback while their modules are still being loaded.

Nothing is imported here that takes time. What Ctrl-C means later is said by the commands themselves.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def _quiet_interrupt() -> bool:
    """Until the command is there to answer it, an interrupt simply ends the process. False where it is ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def _not_loaded(program: str, error: Exception) -> NoReturn:
    """A limit of the shell that is in the way of a module is one sentence, too."""
    from tensor_fusion.terminal import complain, limited

    sentence = limited(error)
    if not sentence:
        raise error
    complain(f"{program}: {sentence}")
    sys.exit(1)


def client() -> None:
    quiet = _quiet_interrupt()
    try:
        from tensor_fusion.cli.main import main
    except (ImportError, MemoryError, OSError) as error:
        _not_loaded("tensor-fusion", error)
    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def worker() -> int:
    _quiet_interrupt()
    try:
        from tensor_fusion.worker.main import main
    except (ImportError, MemoryError, OSError) as error:
        _not_loaded("tensor-fusion-worker", error)
    return main()  # which sets handlers of its own before it makes anything
