"""Where both commands begin: Ctrl-C ends them without a traceback while their modules are still being loaded.

Nothing is imported here that takes time. What Ctrl-C means later is said by the commands themselves.
"""

from __future__ import annotations

import signal


def _quiet_interrupt() -> bool:
    """Until the command is there to answer it, an interrupt simply ends the process. False where it is ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def client() -> None:
    quiet = _quiet_interrupt()
    from tensor_fusion.cli.main import main

    if quiet:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def worker() -> int:
    _quiet_interrupt()
    from tensor_fusion.worker.main import main

    return main()  # which sets handlers of its own before it makes anything
