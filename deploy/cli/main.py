"""The `taas` command: its groups and commands by name, each loaded when it is asked for, so that `taas
--help` is there at once.
"""

import importlib
from typing import Final

import click

from deploy.cli.why import offer

_PROCESSES: Final = "deploy.cli.processes"

# In the order in which the help shows them: name → module and attribute.
_COMMANDS: Final = {
    "up": (_PROCESSES, "up"),
    "down": (_PROCESSES, "down"),
    "status": (_PROCESSES, "status"),
    "gateway": (_PROCESSES, "gateway"),
    "worker": (_PROCESSES, "worker"),
    "launcher": (_PROCESSES, "launcher"),
    "billing": (_PROCESSES, "billing"),
    "apply": ("deploy.cli.apply", "apply"),
    "export": ("deploy.cli.export", "export"),
    "batch-service": (_PROCESSES, "batch_service"),
    "tenant": ("deploy.cli.tenant", "tenant"),
    "project": ("deploy.cli.project", "project"),
    "key": ("deploy.cli.key", "key"),
    "admin-key": ("deploy.cli.admin_key", "admin_key"),
    "limit": ("deploy.cli.limit", "limit"),
    "budget": ("deploy.cli.budget", "budget"),
    "model": ("deploy.cli.model", "model"),
    "adapter": ("deploy.cli.adapter", "adapter"),
    "instance": ("deploy.cli.instance", "instance"),
    "evidence": ("deploy.cli.evidence", "evidence"),
    "pool": ("deploy.cli.pool", "pool"),
    "machine": ("deploy.cli.machine", "machine"),
    "contract": ("deploy.cli.contract", "contract"),
    "calibrate": ("deploy.cli.calibrate", "calibrate"),
    "reclaim": ("deploy.cli.reclaim", "reclaim"),
    "release": ("deploy.cli.reclaim", "release"),
    "plan": ("deploy.cli.plan", "plan"),
    "economics": ("deploy.cli.economics", "economics"),
    "price": ("deploy.cli.price", "price"),
    "terms": ("deploy.cli.terms", "terms"),
    "credit": ("deploy.cli.credit", "credit"),
    "invoice": ("deploy.cli.invoice", "invoice"),
    "maker": ("deploy.cli.books", "maker"),
    "books": ("deploy.cli.books", "books"),
    "usage": ("deploy.cli.usage", "usage"),
    "checkpoint": ("deploy.cli.checkpoint", "checkpoint"),
    "retention": ("deploy.cli.retention", "retention"),
    "finding": ("deploy.cli.finding", "finding"),
    "sink": ("deploy.cli.sink", "sink"),
    "audit": ("deploy.cli.audit", "audit"),
    "audit-log": ("deploy.cli.audit_log", "audit_log"),
    "reconcile": ("deploy.cli.reconcile", "reconcile"),
    "batch": ("deploy.cli.batch", "batch"),
    "request": ("deploy.cli.request", "request"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command if module == _PROCESSES else offer(command)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="taas", prog_name="taas")
def main() -> None:
    """Token-as-a-service: tenants, models and instances, capacity and contracts, limits, prices, usage.

    \b
    taas up                                        everything on this machine, in the background
    taas apply FILE                                models, pools, instances and prices as a file says
    taas tenant create acme                        who is billed
    taas key create --tenant acme                  an API key, shown once
    taas limit set --tenant acme --requests-per-minute 60
    taas usage --tenant acme --by model,hour       tokens and money
    taas invoice close --tenant acme --period 2026-11   its invoice, final and signed
    taas audit                                     is every token accounted for?

    Nouns speak to the admin API at TAAS_ADMIN_URL with TAAS_ADMIN_KEY; where these are unset, `taas up` has
    left them in .taas/demo.env. What changes something takes --why, a reason for the audit log. Exit status:
    0 done, 1 refused or not reached, 2 wrong usage; 3 `taas apply --dry-run` would change something.
    """
