"""Names the provider in events of requests whose gateway died before their first checkpoint: what such a
gateway left for the case of its death is the same for all instances. Without the name nobody would look for
what the provider charges.
"""

from collections.abc import Mapping

from msgspec.structs import replace
from sqlalchemy import Connection, func, select

from billing.schema.catalogue import instance, model
from billing.wire.ending import Ending
from billing.wire.engine_kinds import PROVIDERS
from billing.wire.usage_event import UsageEvent


def with_providers(connection: Connection, events: Mapping[str, UsageEvent]) -> dict[str, UsageEvent]:
    """Those of these events (by request id) that may have gone to a provider without saying so, with its
    name; what they used there is not known.
    """
    unsaid = {
        request_id: event
        for request_id, event in events.items()
        if event.ending is Ending.GATEWAY_DIED and event.provider is None
    }
    if not unsaid:
        return {}
    served_as = func.coalesce(instance.c.engine_model, model.c.engine_model)
    query = (
        select(instance.c.instance_id, instance.c.engine, served_as)
        .join(model, model.c.name == instance.c.model)
        .where(
            instance.c.instance_id.in_({event.instance for event in unsaid.values()}),
            instance.c.engine.in_(PROVIDERS),
        )
    )
    kinds = {row[0]: {"kind": row[1], "model": row[2], "usage": None} for row in connection.execute(query)}
    return {
        request_id: replace(event, provider=kinds[event.instance])
        for request_id, event in unsaid.items()
        if event.instance in kinds
    }
