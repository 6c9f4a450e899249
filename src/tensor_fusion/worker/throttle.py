"""What one address may do in a while: guesses of a secret, starts of sessions, lines of the log.

Nothing here waits. Whoever asks too often is told so, and the table of those who asked is bounded: an attacker that has
many addresses makes it forget the one that was quiet for longest.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from tensor_fusion.worker.log import LOGGER

MOST_KEYS = 4096


@functools.lru_cache(MOST_KEYS)
def group(address: str) -> str:
    """Whose address it is: a host of IPv6 has a /64 to choose from, one of IPv4 one address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False).network_address)


class Throttle:
    """For each key `burst` at once, and then `rate` a second."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _now(self, key: str) -> float:
        left, since = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - since) * self._rate)

    def allows(self, key: str) -> bool:
        return self._now(key) >= 1

    def spend(self, key: str) -> None:
        self._left[key] = (max(self._now(key) - 1, 0.0), self._clock())
        self._left.move_to_end(key)
        while len(self._left) > MOST_KEYS:
            self._left.popitem(last=False)

    def take(self, key: str) -> bool:
        """Both: whether there is one, which is then spent."""
        if not self.allows(key):
            return False
        self.spend(key)
        return True


class BoundedLines:
    """Lines of the log that strangers cause: few for each of them and not many for all; the others are counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._each = Throttle(10, 0.2, clock)
        self._all = Throttle(100, 2, clock)
        self._left_out = 0

    def write(self, level: int, key: str, text: str, *arguments: object) -> None:
        if not LOGGER.isEnabledFor(level):
            return
        if not self._each.allows(key) or not self._all.allows(""):
            self._left_out += 1
            return
        self._each.spend(key)
        self._all.spend("")
        if self._left_out:
            text += " (%d lines like this were left out before)"
            arguments += (self._left_out,)
            self._left_out = 0
        LOGGER.log(level, text, *arguments)
