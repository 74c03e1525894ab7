"""What may be set of the way from noise to a picture, beyond its sampler and its steps."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from velatura.errors import BadRecipe


class SamplerSettings(BaseModel):
    """How a sampler walks, where it leaves a choice; what is left out is as the webui has it.

    churn to churn_noise, sigma_min, sigma_max and rho are letters of Karras et al. 2022, "Elucidating the design space
    of diffusion-based generative models": S_churn, S_tmin, S_tmax, S_noise. 0 stands for the scheduler's own sigma_min,
    sigma_max or rho, and for any noise level as churn_to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scheduler: str | None = Field(default=None, description="where the steps stop; none: as the sampler's name says")
    eta: float | None = Field(default=None, ge=0, description="fresh noise of ancestral steps; none: the sampler's own")
    churn: float = Field(default=0.0, ge=0, description="noise added before each step of Euler, Heun and DPM2")
    churn_from: float = Field(default=0.0, ge=0, description="least noise level at which churn acts")
    churn_to: float = Field(default=0.0, ge=0, description="greatest noise level at which churn acts; 0: any")
    churn_noise: float = Field(default=1.0, ge=0, description="how strong fresh noise is")
    sigma_min: float = Field(default=0.0, ge=0, description="the schedule's last noise level before 0; 0: the base's")
    sigma_max: float = Field(default=0.0, ge=0, description="the schedule's first noise level; 0: the base's")
    rho: float = Field(default=0.0, ge=0, description="how the levels crowd; 0: the scheduler's own")
    discards_penultimate: bool = Field(default=False, description="leave out the last but one noise level")
    sgm_noise: bool = Field(default=False, description="start with a little more noise, as Stability AI's program does")
    quantised: bool = Field(default=False, description="call the model at whole timesteps only")
    noise_multiplier: float = Field(default=1.0, ge=0, description="how strong the noise over an image is")
    extra_noise: float = Field(default=0.0, ge=0, description="noise over an image beyond what its first step expects")
    unipc_variant: Literal["bh1", "bh2"] = Field(default="bh1", description="which B(h) of UniPC's paper")
    unipc_spacing: Literal["time_uniform", "time_quadratic", "logSNR"] = Field(
        default="time_uniform", description="what UniPC's levels are even in"
    )
    unipc_order: int = Field(default=3, ge=1, le=9, description="how many guesses UniPC looks back on")
    unipc_lower_order_final: bool = Field(default=True, description="fewer of them in UniPC's last steps")

    @classmethod
    def of(cls, recipe: BaseModel) -> Self:
        """The fields of a recipe that are settings of its sampler."""
        return cls.model_validate(recipe.model_dump(include=set(cls.model_fields)))

    @model_validator(mode="wrap")
    @classmethod
    def _raise_bad_recipe(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            message = "; ".join(
                _describe_error(detail["loc"], detail["input"], detail["msg"]) for detail in error.errors()
            )
            raise BadRecipe(message) from None


def _describe_error(location: tuple[int | str, ...], value: object, reason: str) -> str:
    """One entry of pydantic's list of errors, in our words."""
    name = str(location[0]) if location else ""
    if name not in SamplerSettings.model_fields:
        return f"a sampler has no setting {name or repr(value)}; it has {', '.join(SamplerSettings.model_fields)}"
    return f"the sampler's {name} is {value!r}: it {reason.removeprefix('Input ')}"
