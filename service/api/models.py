"""``/v1/models``: OpenAI's list, and what each model lets a request choose."""

from __future__ import annotations

from models.spec.model import ModelSpec
from service.api.context import Services, UsesServices
from service.api.resolve import capabilities, find_model, has_fast_decoder, schedulers, size_names
from service.api.routing import make_router
from service.api.views import ModelList, ModelView
from service.settings import installed_adapters

router = make_router("/v1/models", "models")


@router.get("")
async def list_models(services: UsesServices) -> ModelList:
    """Every installed model; the first is the default."""
    return ModelList(data=[_view(spec, services) for spec in services.models.values()])


@router.get("/{name}")
async def get_model(name: str, services: UsesServices) -> ModelView:
    """One model."""
    return _view(find_model(name, services.models), services)


def _view(spec: ModelSpec, services: Services) -> ModelView:
    status = services.forecast.status
    clips = spec.system.task == "image-to-video"
    return ModelView(
        id=spec.name,
        created=int((spec.folder / "model_index.json").stat().st_mtime),
        task=spec.system.task,
        capabilities=list(capabilities(spec)),
        state="loaded" if status is not None and spec.name in status.models else "installed",
        license=spec.licence,
        sizes=size_names(spec),
        frames=spec.frames if clips else None,
        default_steps=spec.steps,
        max_steps=spec.max_steps,
        default_guidance=spec.guidance,
        max_guidance=spec.max_guidance,
        default_scheduler=spec.solver,
        schedulers=list(schedulers(spec)),
        decoders=["full", "fast"] if has_fast_decoder(spec) else ["full"],
        loras=list(installed_adapters(services.settings)),
    )
