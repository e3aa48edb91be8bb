"""What runs inside an actor of Ray: one worker, or one of the further nodes of an engine that runs over
several. The actor holds it as a child, which dies with the actor.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.launching.held_worker import HeldWorker
from serving.settings import inherited_environment


class WorkerActor:
    """One node's part of an instance. `settings`: TAAS_… of the launcher; what the node itself sets wins."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = dict(settings)
        self._held: HeldWorker | None = None

    def place(self) -> tuple[str, str]:
        """The node's id, and its address."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), str(ray.util.get_node_ip_address())

    def start(self, module: str, words: Sequence[str], name: str) -> None:
        """Run `python -m MODULE WORDS`, listening on this node's address."""
        environment = self._settings | inherited_environment() | {"TAAS_WORKER_HOST": self.place()[1]}
        home = Path(environment.get("TAAS_HOME", ".taas")).absolute()
        log = home / "logs" / f"worker-{name.replace('/', '-')}.log"
        self._held = HeldWorker(words, environment, log, module=module)

    def status(self) -> int | None:
        """Of what was started; None while it runs, or before that."""
        return None if self._held is None else self._held.status()

    def drain(self) -> None:
        """Its requests may end."""
        if self._held is not None:
            self._held.drain()
