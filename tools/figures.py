"""Print what the description of the API does: functions made from a line alone, and C by hand for each that is served.

    PYTHONPATH=src python tools/figures.py

A function is generated from end to end when its line is a call, a post or pure and the generated code calls the driver.
Lines of C are those of native/client and native/session, comments and all.
"""

from __future__ import annotations

from pathlib import Path

import rooms

from tensor_fusion.apigen.model import NOT_SERVED, load

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    cuda = load(ROOT / "api").apis[0]
    lines = {name: cuda.lines[name] for name in cuda.exports}
    served = [name for name, line in lines.items() if cuda.resolve(line).kind not in NOT_SERVED]
    remote = [line for line in lines.values() if line.kind in ("call", "post", "pure")]
    whole = [line for line in remote if line.session == "driver"]
    hooked = [line for line in whole if line.check or line.noted or line.wrapped]
    files = [path for folder in ("client", "session") for path in (ROOT / "native" / folder).rglob("*.[ch]")]
    written = sum(len(path.read_text().splitlines()) for path in files)
    print(f"names that the driver exports          {len(cuda.exports)}")
    print(f"served                                 {len(served)}")
    print(f"generated from end to end              {len(whole)}")
    print(f"of those with a part by hand           {len(hooked)}")
    print(f"a line, and C by hand in the session   {len(remote) - len(whole)}")
    by_hand = [line for line in lines.values() if line.kind in ("custom", "local") and line.gives is None]
    print(f"by hand in the client                  {len(by_hand)}")
    other = ("alias", "older", "per_thread")
    print(f"other names of one of these            {sum(lines[name].kind in other for name in served)}")
    print(f"C by hand in client and session        {written}")
    print(f"of that for each served function       {written / len(served):.1f}")
    print(f"arrows back between families           {sum(len(rooms.side(name).back()) for name in rooms.ORDER)}")


if __name__ == "__main__":
    main()
