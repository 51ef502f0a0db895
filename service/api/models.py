"""``/v1/models``: OpenAI's list, and what each model lets a request choose."""

from __future__ import annotations

from fastapi import APIRouter

from models.spec.model import ModelSpec
from service.api.context import UsesServices
from service.api.resolve import find_model, schedulers, size_names
from service.api.schema import ModelList, ModelView

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(services: UsesServices) -> ModelList:
    """Every installed model; the first is the default."""
    return ModelList(data=[_view(spec) for spec in services.models.values()])


@router.get("/{name}")
async def get_model(name: str, services: UsesServices) -> ModelView:
    """One model."""
    return _view(find_model(name, services.models))


def _view(spec: ModelSpec) -> ModelView:
    return ModelView(
        id=spec.name,
        created=int((spec.folder / "model_index.json").stat().st_mtime),
        sizes=size_names(spec),
        default_steps=spec.steps,
        max_steps=spec.max_steps,
        default_guidance=spec.guidance,
        max_guidance=spec.max_guidance,
        default_scheduler=spec.solver,
        schedulers=list(schedulers(spec)),
    )
