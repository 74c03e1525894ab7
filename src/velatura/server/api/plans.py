"""Route of plans: what a training does unless a request says otherwise, and what each field means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from velatura.errors import ignore_warnings
from velatura.training.plan import Plan

router = APIRouter(prefix="/api/plans", tags=["runs"])


class PlanField(BaseModel):
    """Field of a plan: the preset's value, and what it means."""

    value: Any
    description: str


@router.get("/{kind}")
def get_preset(
    kind: str,
    *,
    purpose: Literal["style", "subject"] = "style",
    family: Annotated[str, Query(max_length=50, description="family of the base, as SD1")] = "SD1",
) -> dict[str, PlanField]:
    """Return the preset of a kind of overlay, by the names that the field `plan` of a request takes."""
    with ignore_warnings():
        plan = Plan.preset(kind, family, purpose)
    return {
        name: PlanField(value=value, description=Plan.model_fields[name].description or "")
        for name, value in plan.model_dump(mode="json").items()
    }
