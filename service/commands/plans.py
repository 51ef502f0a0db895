"""The table of memory plans that ``darkroom doctor`` prints: what of each installed model stays on which GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.spec.memory import DEVICE_GB, bytes_saved, plan_memory

if TYPE_CHECKING:
    from rich.table import Table

    from service.settings import Settings


def memory_table(settings: Settings) -> Table | None:
    """A row for each installed model, in half precision, with T5 as it is set; None without torch, or where nothing can
    be said. Below it, what T5 in 8 bits saves.

    The sizes are read from the headers of the weights.
    """
    from rich.table import Table

    from service.settings import installed_models

    try:
        from models.inspection import inspect

        specs = installed_models(settings)
    except (ImportError, ValueError):
        return None  # the report above has said so
    eight_bit = settings.t5 == "8bit"
    bits = "16 bits, T5 in 8" if eight_bit else "16 bits"
    table = Table(f"memory plan, {bits}", *(f"{gb} GB" for gb in DEVICE_GB))
    saved: dict[str, int] = {}
    for spec in specs.values():
        try:
            found = inspect(spec.folder)
        except (OSError, ValueError):
            continue
        if found.whole:
            parameters = {part.name: part.parameters for part in found.parts}
            plans = (plan_memory(parameters, gb * 10**9, eight_bit_t5=eight_bit) for gb in DEVICE_GB)
            table.add_row(spec.name, *map(str, plans))
            if size := bytes_saved(parameters):
                saved[spec.name] = size
    if saved:
        verb = "saves" if eight_bit else "would save"
        sizes = ", ".join(f"{size / 1e9:.1f} GB of {name}" for name, size in saved.items())
        table.caption = f"T5 in 8 bits (DARKROOM_T5=8bit) {verb} {sizes}"
    return table if table.rows else None
