"""Settings of samplers and noise schedules beyond the sampler's name and its steps."""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from velatura.errors import BadRecipe, explain_validation_error


class SamplerSettings(BaseModel):
    """Settings of a sampler and its noise schedule; the defaults are those of A1111.

    `churn`, `churn_from`, `churn_to` and `churn_noise` are S_churn, S_tmin, S_tmax and S_noise of Karras et al. 2022,
    "Elucidating the design space of diffusion-based generative models". 0 means the scheduler's own value of
    `sigma_min`, `sigma_max` and `rho`, and any noise level as `churn_to`.
    """

    owner: ClassVar[str] = "sampler"  # what error messages call the owner of the fields

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scheduler: str | None = Field(default=None, description="noise schedule; none: as the sampler's name says")
    eta: float | None = Field(default=None, ge=0, description="new noise of ancestral steps; none: the sampler's own")
    churn: float = Field(default=0.0, ge=0, description="noise added before each step of Euler, Heun and DPM2")
    churn_from: float = Field(default=0.0, ge=0, description="lowest noise level at which churn acts")
    churn_to: float = Field(default=0.0, ge=0, description="highest noise level at which churn acts; 0: any")
    churn_noise: float = Field(default=1.0, ge=0, description="strength of new noise")
    sigma_min: float = Field(default=0.0, ge=0, description="the schedule's last noise level before 0; 0: the base's")
    sigma_max: float = Field(default=0.0, ge=0, description="the schedule's first noise level; 0: the base's")
    rho: float = Field(default=0.0, ge=0, description="how dense the low noise levels are; 0: the scheduler's own")
    discards_penultimate: bool = Field(default=False, description="leave out the last noise level but one")
    sgm_noise: bool = Field(default=False, description="start with slightly more noise, as in generative-models")
    quantised: bool = Field(default=False, description="call the model at whole timesteps only")
    noise_multiplier: float = Field(default=1.0, ge=0, description="strength of the noise over an init image")
    extra_noise: float = Field(
        default=0.0, ge=0, description="noise over an init image that the first step does not expect"
    )
    unipc_variant: Literal["bh1", "bh2"] = Field(default="bh1", description="B(h) of UniPC's paper")
    unipc_spacing: Literal["time_uniform", "time_quadratic", "logSNR"] = Field(
        default="time_uniform", description="spacing of UniPC's noise levels"
    )
    unipc_order: int = Field(default=3, ge=1, le=9, description="order of UniPC: how many model outputs it uses")
    unipc_lower_order_final: bool = Field(default=True, description="lower the order in UniPC's last steps")

    @classmethod
    def of(cls, recipe: BaseModel) -> Self:
        """Return the settings that a recipe has for its sampler."""
        return cls.model_validate(recipe.model_dump(include=set(cls.model_fields)))

    @model_validator(mode="wrap")
    @classmethod
    def _raise_bad_recipe(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            fields = {name: field.description for name, field in cls.model_fields.items()}
            raise BadRecipe(explain_validation_error(error, cls.owner, fields)) from None
