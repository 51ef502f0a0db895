"""Solvers by name, one readable file a group. Every one is linear in the state, so all of them fill the same table."""

from __future__ import annotations

from models.grids import (
    ancestral_grid,
    ddim_grid,
    dpm_grid,
    edm_grid,
    euler_grid,
    flow_dpm_grid,
    flow_grid,
    lcm_grid,
)
from models.solvers.base import Solver
from models.solvers.first_order import first_order
from models.solvers.heun import heun
from models.solvers.lcm import consistency
from models.solvers.multistep import second_order_multistep
from models.solvers.plms import plms
from models.solvers.unipc import unipc

__all__ = ["SOLVERS", "Solver"]

SOLVERS: dict[str, Solver] = {
    "euler": Solver({"discrete": euler_grid, "edm": edm_grid}, first_order),
    "euler-ancestral": Solver({"discrete": ancestral_grid}, first_order, eta=1.0),
    "ddim": Solver({"discrete": ddim_grid}, first_order, eta=None),
    "dpm++2m": Solver({"discrete": dpm_grid}, second_order_multistep, history=1),
    "dpm++2m-sde": Solver({"discrete": dpm_grid}, second_order_multistep, history=1, eta=1.0),
    "lcm": Solver({"discrete": lcm_grid}, consistency),
    "plms": Solver({"discrete": ddim_grid}, plms, history=3),
    "unipc": Solver({"discrete": dpm_grid}, unipc, history=3),
    "heun": Solver({"discrete": euler_grid, "edm": edm_grid}, heun, history=1),
    "flow-euler": Solver({"flow": flow_grid}, first_order),
    "flow-dpm++2m": Solver({"flow": flow_dpm_grid}, second_order_multistep, history=1),
}
