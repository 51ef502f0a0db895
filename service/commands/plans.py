"""The table of memory plans that ``darkroom doctor`` prints: what of each installed model stays on which GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.spec.memory import DEVICE_GB, plan_memory

if TYPE_CHECKING:
    from rich.table import Table

    from service.settings import Settings


def memory_table(settings: Settings) -> Table | None:
    """A row for each installed model, in half precision; None without torch, or where nothing can be said.

    The sizes are read from the headers of the weights.
    """
    from rich.table import Table

    from service.settings import installed_models

    try:
        from models.inspection import inspect

        specs = installed_models(settings)
    except (ImportError, ValueError):
        return None  # the report above has said so
    table = Table("memory plan, 16 bits", *(f"{gb} GB" for gb in DEVICE_GB))
    for spec in specs.values():
        try:
            found = inspect(spec.folder)
        except (OSError, ValueError):
            continue
        if found.whole:
            parameters = {part.name: part.parameters for part in found.parts}
            table.add_row(spec.name, *(str(plan_memory(parameters, gb * 10**9)) for gb in DEVICE_GB))
    return table if table.rows else None
