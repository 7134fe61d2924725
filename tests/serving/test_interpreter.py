from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

SETTLED = "import gc, sys; print(gc.get_freeze_count() > 50_000, gc.get_threshold()[0], sys.getswitchinterval())"


def said(program: str, *arguments: str) -> str:
    """What a process of its own prints last: the interpreter's settings are of the whole process."""
    command = [sys.executable, "-c", dedent(program) + "\n" + SETTLED, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


SERVER = """
    import sys
    from contextlib import suppress
    from recsys.errors import UnavailableError
    from serving.runner import run
    from serving.settings import Settings
    settings = Settings(
        registry=sys.argv[1] + "/registry",
        state=sys.argv[1] + "/state",
        host="no.such.host.invalid",
        open=True,
        engine_socket=sys.argv[1] + "/engine.sock",
    )
    with suppress(UnavailableError):
        run(settings)
"""
ENGINE = """
    import sys
    from contextlib import suppress
    from pathlib import Path
    import serving.remote.runner as runner
    from serving.settings import Settings
    settings = Settings(registry=sys.argv[1] + "/registry", state=sys.argv[1] + "/state")
    class EndError(Exception): pass
    class Ends:
        def __init__(self, *_, **__): raise EndError
    runner.InProcessEngine = Ends
    with suppress(EndError):
        runner.run_engine(settings, Path(sys.argv[1]) / "engine.sock")
"""


@pytest.mark.parametrize("program", [SERVER, ENGINE])
def test_a_process_that_serves_walks_over_no_modules_and_lets_threads_take_turns(
    program: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")  # short: a socket's path
    assert said(program, str(folder)) == "True 10000 0.0005"
