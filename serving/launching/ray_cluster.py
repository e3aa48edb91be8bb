"""Workers on the nodes of a Ray cluster: one actor a node, each holding its worker as a child process.

Ray decides where there is room: a placement group has a bundle for each node of an instance. Actors are
detached, so they stay when the launcher ends, and the next one finds them by name. Whether an instance lives
is not asked of Ray (`reconcile`). Ray is imported here alone, when it is asked for.

An instance over several nodes was written by vLLM's source and has not been tried.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from serving.launch import CannotStart
from serving.launching.launcher import Launch, NoRoom
from serving.launching.ray_actor import WorkerActor

NAMESPACE: Final = "taas"
_CALL_S: Final = 2.0
# A node that answers does so at once, and one that was lost must not hold up the others. Who does not answer
# counts as running.
_STATUS_S: Final = 0.3
# Where there is room, a place is found at once.
_PLACE_S: Final = 3.0
# An actor's process starts in a second or two; on a busy machine it takes longer.
_ACTOR_S: Final = 20.0
# After its instance was lost, a node gets no new one, if another has room, for as long as Ray may take to see
# that it is gone.
_AVOID_S: Final = 60.0
_NODE_LABEL: Final = "ray.io/node-id"
_MASTER_PORT: Final = "29501"


@dataclass(slots=True)
class _Placed:
    """An instance's actors, head first, and the head's node."""

    actors: list[Any]
    group: Any
    node: str


def connect_ray(address: str, settings: Mapping[str, str], note: Callable[[str], None]) -> "RayLauncher":
    """Raises CannotStart."""
    try:
        import ray
    except ImportError as exc:
        raise CannotStart(
            "TAAS_LAUNCHER=ray needs Ray: pip install --require-hashes -r serving/ray.lock"
        ) from exc
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError) as exc:
        raise CannotStart(f"TAAS_RAY_ADDRESS: no Ray cluster answers at {address}: {exc}") from exc
    return RayLauncher(ray, settings, note)


class RayLauncher:
    """`ray`: the module, connected to a cluster."""

    def __init__(self, ray: Any, settings: Mapping[str, str], note: Callable[[str], None]) -> None:
        self._ray = ray
        self._settings = settings
        self._note = note
        self._placed: dict[str, _Placed] = {}
        self._avoid: dict[str, float] = {}
        self._adopt()

    async def start(self, instance: str, launch: Launch) -> None:
        await asyncio.to_thread(self._start, instance, launch)

    async def running(self) -> frozenset[str]:
        return await asyncio.to_thread(self._running)

    async def drain(self, instance: str) -> None:
        if (placed := self._placed.get(instance)) is not None:
            await asyncio.to_thread(self._told, placed.actors[0].drain.remote())

    async def end(self, instance: str) -> None:
        if (placed := self._placed.get(instance)) is not None:
            self._avoid[placed.node] = time.monotonic() + _AVOID_S
            await asyncio.to_thread(self._remove, instance, placed)

    async def close(self) -> None:
        """What runs stays: the next launcher finds it."""
        await asyncio.to_thread(self._ray.shutdown)

    def _start(self, instance: str, launch: Launch) -> None:
        """Elsewhere first; where there is no room, on a node that has just lost an instance."""
        now = time.monotonic()
        self._avoid = {node: until for node, until in self._avoid.items() if until > now}
        if self._avoid:
            with contextlib.suppress(NoRoom):
                self._place(instance, launch, {_NODE_LABEL: f"!in({','.join(self._avoid)})"})
                return
        self._place(instance, launch, {})

    def _place(self, instance: str, launch: Launch, where: dict[str, str]) -> None:
        from ray.util.placement_group import placement_group, remove_placement_group

        needs = {**launch.resources, **({"GPU": launch.gpus} if launch.gpus else {})} or {"CPU": 1}
        group = placement_group(
            [dict(needs) for _ in range(launch.nodes)],
            strategy="STRICT_SPREAD" if launch.nodes > 1 else "PACK",
            name=instance,
            lifetime="detached",
            bundle_label_selector=[where] * launch.nodes,
        )
        actors: list[Any] = []
        try:
            if not group.wait(timeout_seconds=_PLACE_S):
                raise NoRoom(f"no node of the cluster has room for {needs}")
            actors += [self._actor(instance, rank, needs, group) for rank in range(launch.nodes)]
            places = self._ray.get([actor.place.remote() for actor in actors], timeout=_ACTOR_S)
            node, head = places[0]
            started = []
            for rank, actor in enumerate(actors):
                name = instance if rank == 0 else f"{instance}-node-{rank}"
                started.append(actor.start.remote(*command(launch, instance, rank, head), name))
            self._ray.get(started, timeout=_ACTOR_S)
        except (self._ray.exceptions.RayError, TimeoutError, NoRoom) as exc:
            for actor in actors:
                self._kill(actor)
            remove_placement_group(group)
            raise NoRoom(str(exc) if isinstance(exc, NoRoom) else f"Ray: {type(exc).__name__}") from exc
        self._placed[instance] = _Placed(actors, group, node)

    def _actor(self, instance: str, rank: int, needs: Mapping[str, int], group: Any) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        others = {name: amount for name, amount in needs.items() if name not in {"CPU", "GPU"}}
        return (
            self._ray.remote(WorkerActor)
            .options(
                name=f"{instance}#{rank}",
                lifetime="detached",
                max_restarts=0,
                num_cpus=needs.get("CPU", 0),
                num_gpus=needs.get("GPU", 0),
                resources=others,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=rank
                ),
            )
            .remote(dict(self._settings))
        )

    def _running(self) -> frozenset[str]:
        """An actor that does not answer counts as running: the lease of its instance decides."""
        asked = [
            (instance, actor.status.remote())
            for instance, placed in self._placed.items()
            for actor in placed.actors
        ]
        if asked:
            self._ray.wait([reference for _, reference in asked], num_returns=len(asked), timeout=_STATUS_S)
        for instance, reference in asked:
            placed = self._placed.get(instance)
            if placed is None:
                continue
            try:
                status = self._ray.get(reference, timeout=0)
            except TimeoutError:
                continue
            except self._ray.exceptions.RayActorError:
                status = "its actor died"
                self._avoid[placed.node] = time.monotonic() + _AVOID_S
            if status is not None:
                if status != 0:
                    self._note(f"the worker of {instance} ended: {status}")
                self._remove(instance, placed)
        return frozenset(self._placed)

    def _remove(self, instance: str, placed: _Placed) -> None:
        from ray.util.placement_group import remove_placement_group

        for actor in placed.actors:
            self._kill(actor)
        remove_placement_group(placed.group)
        del self._placed[instance]

    def _kill(self, actor: Any) -> None:
        """Its guard sees the end of its pipe, and kills all that belongs to it."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _told(self, reference: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, TimeoutError):
            self._ray.get(reference, timeout=_CALL_S)

    def _adopt(self) -> None:
        """What a launcher before this one has left running."""
        from ray.util import get_placement_group, list_named_actors

        ranks: dict[str, list[int]] = {}
        for name in list_named_actors():
            instance, _, rank = name.rpartition("#")
            ranks.setdefault(instance, []).append(int(rank))
        for instance, there in sorted(ranks.items()):
            actors = [self._ray.get_actor(f"{instance}#{rank}") for rank in sorted(there)]
            try:
                node, _ = self._ray.get(actors[0].place.remote(), timeout=_CALL_S)
            except (self._ray.exceptions.RayError, TimeoutError):
                node = ""
            self._placed[instance] = _Placed(actors, get_placement_group(instance), node)
            self._note(f"{instance}: runs already")


def command(launch: Launch, instance: str, rank: int, head: str) -> tuple[str, list[str]]:
    """Module and words of a node's process."""
    words = launch.worker_words(instance)
    if launch.nodes == 1:
        return "serving", words
    together = ["--nnodes", str(launch.nodes), "--master-addr", head, "--master-port", _MASTER_PORT]
    mine = [*together, "--node-rank", str(rank)]
    words += [f"--engine-arg={word}" for word in mine]
    return ("serving" if rank == 0 else "serving.launching.further_node"), words
