"""Stop everything of one home, gently and in the reverse order, and make sure that nothing is left. What
was stored stays.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from deploy.local import postgres, valkey
from deploy.local.processes import Processes
from deploy.local.progress import Progress, StepFailed, tell_failure
from deploy.local.services import BATCH, BILLING, GATEWAY, POOLING, WORKER, grace_s
from deploy.local.settings import LocalSettings, read_settings
from deploy.local.up import alone

_VALKEY_GRACE_S: Final = 30.0


def down() -> int:
    """Streams end first, then engines, then billing, which takes the last usage; the stores last. The exit
    status.
    """
    try:
        settings = read_settings()
        if not settings.folder.exists():
            print(f"nothing to stop: there is no {settings.folder}")
            return 0
        with alone(settings.folder):
            return _stop_all(settings)
    except StepFailed as exc:
        tell_failure(exc, sys.stdout)
        return 1


def _stop_all(settings: LocalSettings) -> int:
    processes = Processes(settings.folder)
    progress = Progress(8)
    # What is in one group stops at the same time.
    for group in ((BATCH,), (GATEWAY,), (WORKER, POOLING), (BILLING,)):
        with ThreadPoolExecutor() as threads:
            stopping = [threads.submit(processes.stop, name, grace_s(settings, name)) for name in group]
            for name, stopped in zip(group, stopping, strict=True):
                with progress.step(name) as step:
                    step.result = "stopped" if stopped.result() else "did not run"
    with progress.step("PostgreSQL") as step:
        step.result = "stopped" if postgres.stop(settings) else "did not run"
    with progress.step("Valkey") as step:
        step.result = "stopped" if processes.stop(valkey.NAME, _VALKEY_GRACE_S) else "did not run"
    with progress.step("what is left") as step:
        ended = processes.end_leftovers()
        step.result = f"ended {', '.join(ended)}" if ended else "nothing"
        if still := processes.leftovers():
            names = ", ".join(f"{process.name()} ({process.pid})" for process in still)
            raise StepFailed(
                f"still running: {names}", "Something starts them again: stop their parent process."
            )
    progress.say(f"nothing runs; the data stays in {settings.folder}")
    return 0
