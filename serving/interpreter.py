"""The interpreter of a process that serves: what it does by itself must hold up nobody."""

from __future__ import annotations

import gc
import sys
from typing import Final

_YOUNG: Final = 10_000  # objects; some ten requests make as many
_OLDER: Final = 20  # collections of the young until those that survived one are looked at
_SWITCH: Final = 0.0005  # seconds


def settle(*, model: bool = False) -> None:
    """Take what is loaded by now out of the collector's walks, and let threads take turns ten times as often.

    A walk over all modules halts a process for a tenth of a second. A thread that comes back from a call which freed
    the interpreter waits for it as long as another one may keep it: by default 5 ms, each time.

    To be called before the first bundle is opened: what is in a cycle then would never be freed.

    Args:
        model: load first what a process that decodes needs.
    """
    if model:
        import serving.reload  # noqa: F401 - with torch and the decoders
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _OLDER, _OLDER)
    sys.setswitchinterval(_SWITCH)
