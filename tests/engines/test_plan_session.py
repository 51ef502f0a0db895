"""The session's calls against the bindings' own signatures. It runs in tests/gpu/test_engines.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines import plan, plan_session, refit
from engines.plan import load_tensorrt

pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt-rtx is published for Linux on x86-64")

CALLS = {
    "Builder": {
        "create_network": ["flags"],
        "create_builder_config": [],
        "create_optimization_profile": [],
        "build_serialized_network": ["network", "config"],
    },
    "OnnxParser": {"parse_from_file": ["model"], "get_error": ["index"]},
    "IBuilderConfig": {
        "add_optimization_profile": ["profile"],
        "set_flag": ["flag"],
        "clear_flag": ["flag"],
        "set_compute_capability": ["compute_capability", "index"],
        "set_memory_pool_limit": ["pool", "pool_size"],
        "create_timing_cache": ["serialized_timing_cache"],
        "set_timing_cache": ["cache", "ignore_mismatch"],
        "get_timing_cache": [],
    },
    "IOptimizationProfile": {"set_shape": ["input", "min", "opt", "max"]},
    "INetworkDefinition": {"get_layer": ["index"]},
    "ILayer": {"get_output": ["index"]},
    "ICudaEngine": {"create_runtime_config": [], "serialize": []},
    "IRuntimeConfig": {"create_runtime_cache": [], "set_runtime_cache": ["cache"]},
    "IRuntimeCache": {"serialize": [], "deserialize": ["blob"]},
    "OnnxParserRefitter": {"refit_from_file": ["model"]},
    "Refitter": {"get_missing_weights": [], "refit_cuda_engine": []},
    "ITimingCache": {"serialize": []},
    "IExecutionContext": {
        "set_optimization_profile_async": ["profile_index", "stream_handle"],
        "set_tensor_address": ["name", "memory"],
        "execute_async_v3": ["stream_handle"],
    },
}
OVERLOADED = {"Runtime": ["deserialize_cuda_engine"], "ICudaEngine": ["create_execution_context"],
              "IExecutionContext": ["set_input_shape"]}  # fmt: skip
PROPERTIES = {
    "OnnxParser": ["num_errors"],
    "IBuilderConfig": ["num_compute_capabilities"],
    "INetworkDefinition": ["num_layers"],
    "ILayer": ["type", "num_outputs"],
    "ITensor": ["dtype"],
    "IHostMemory": ["nbytes"],
    "ICudaEngine": ["weight_streaming_budget_v2", "refittable"],
    "IRuntimeConfig": ["dynamic_shapes_kernel_specialization_strategy"],
}
MEMBERS = {
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "MemoryPoolType": ["WORKSPACE", "TACTIC_DRAM"],
    "BuilderFlag": ["WEIGHT_STREAMING", "REFIT", "TF32"],
    "DynamicShapesKernelSpecializationStrategy": ["EAGER"],
}
OF_OTHERS = {"log", "get", "join", "setdefault", "update", "values", "items", "keys"}
"""Names of methods of Python's own."""


@pytest.mark.parametrize(("owner", "method"), [(owner, method) for owner in CALLS for method in CALLS[owner]])
def test_a_method_takes_what_it_is_given(owner: str, method: str) -> None:
    documented = getattr(load_tensorrt("tensorrt-rtx"), owner).__dict__[method].__doc__
    parameters = re.findall(r"[(,] (?:\*, )?(\w+): |\(self", documented.split(" -> ")[0])
    assert [name for name in parameters if name] == CALLS[owner][method]


def test_everything_else_that_is_used_is_there() -> None:
    trt = load_tensorrt("tensorrt-rtx")
    for names in (OVERLOADED, PROPERTIES, MEMBERS):
        for owner, wanted in names.items():
            assert set(wanted) <= set(dir(getattr(trt, owner))), owner


def test_no_call_of_the_bindings_is_left_out() -> None:
    known = {name for calls in (*CALLS.values(), *OVERLOADED.values()) for name in calls}
    source = "".join(Path(module.__file__ or "").read_text() for module in (plan, plan_session, refit))
    objects = (
        "refitter|builder|network|parser|config|profile|context|_context|_engine|_runtime|engine|runtime|cache|layer"
    )
    called = set(re.findall(rf"\b(?:{objects})\.(\w+)\(", source)) - OF_OTHERS
    assert "execute_async_v3" in called and "refit_cuda_engine" in called and "set_shape" in called
    assert called <= known
