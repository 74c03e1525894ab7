"""Turn a lazy merge into a base in memory or into a file, and report what went into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from velatura.base.base import Base
from velatura.base.devices import find_device, find_dtype
from velatura.base.text_encoder import TextEncoder
from velatura.errors import BadFile, BadRecipe, warn
from velatura.files import atomic_write, open_for_reading
from velatura.formats.checkpoints import single_file
from velatura.formats.checkpoints.ldm_families import PURPOSE_BY_CHANNELS, V_MARKER
from velatura.formats.checkpoints.prediction import PREDICTION_KEY, read_yaml_prediction
from velatura.formats.checkpoints.tensor_sources import Destination
from velatura.formats.metadata import MODEL_SPEC_PREDICTIONS
from velatura.merging.checkpoints import metadata
from velatura.merging.checkpoints.lazy_merge import MARKERS, MIXED_KEY_PART, LazyMerge
from velatura.merging.checkpoints.merged_prediction import MergedPrediction
from velatura.merging.checkpoints.options import MergeOptions, Saving
from velatura.merging.checkpoints.report import MergeReport
from velatura.merging.checkpoints.retention import RetentionMeter
from velatura.tensors import Contents, StrPath, write_safetensors


@dataclass(frozen=True)
class MergeJob:
    """A merge that is checked and ready to run, once.

    Attributes:
        options: How the weights are mixed.
        saving: How the result is saved.
        lazy_merge: The tensors of the result; reading them fills `meter`.
        meter: Measures how much of each parent is left.
        prediction: What the merge predicts, and its noise schedule.
    """

    options: MergeOptions
    saving: Saving
    lazy_merge: LazyMerge
    meter: RetentionMeter
    prediction: MergedPrediction

    def to_base(self, first: Base | StrPath) -> tuple[Base, MergeReport]:
        """Compute the merge as a base, which has the tokenizers, device and precision of the first model if it has."""
        destination = self._destination(first)
        first_weights = self.lazy_merge.first
        contents = Contents(first_weights.contents.path, self.lazy_merge, first_weights.metadata)
        merged = single_file.read(
            contents,
            destination,
            prediction_type=self.prediction.prediction,
            zero_snr=self.prediction.zero_snr,
        )
        text, schedule, family = merged.text, merged.schedule, merged.family
        if isinstance(first, Base):
            pairs = zip(merged.text.encoders, first.text.encoders, strict=True)
            text = TextEncoder([replace(encoder, tokenizer=original.tokenizer) for encoder, original in pairs])
            family = replace(first.family, prediction=merged.family.prediction)
            if first.schedule.zero_snr == schedule.zero_snr:
                schedule = first.schedule
        name = self.options.title(tuple(model.name for model in self.lazy_merge.models))
        base = Base(name, family, unet=merged.unet, vae=merged.vae, text=text, schedule=schedule)
        return base.to(destination.device), self._report()

    def to_file(self, out: Path) -> tuple[Path, MergeReport]:
        """Write the merge tensor by tensor, and beside it the .yaml that other programs read settings from."""
        if out.suffix != ".safetensors":
            raise BadRecipe(f"{out.name} is not a name for a merge: end it in .safetensors")
        config = self._find_config(out)
        write_safetensors(out, self.lazy_merge, self._metadata(out.stem), dtype=self._dtype)
        if config:
            with open_for_reading(config) as file, atomic_write(out.with_suffix(".yaml")) as temporary:
                temporary.write_bytes(file.read())
        return out, self._report(file=str(out), config=config.name if config else "")

    @property
    def _dtype(self) -> torch.dtype | None:
        return getattr(torch, self.saving.dtype) if self.saving.dtype else None

    def _destination(self, first: Base | StrPath) -> Destination:
        if isinstance(first, Base):
            return Destination(self._dtype or first.dtype, first.device)
        device = find_device("auto")
        size = 0
        for key in self.lazy_merge:
            tensor = self.lazy_merge.meta_tensor(key)
            size += tensor.numel() * tensor.element_size()
        return Destination(self._dtype or find_dtype("auto", device, size), device)

    def _report(self, *, file: str = "", config: str = "") -> MergeReport:
        merge = self.lazy_merge
        only_first = dropped = 0
        if len(merge.models) > 1:
            weights = [
                key for key in merge if MIXED_KEY_PART in key and merge.first.meta_tensor(key).is_floating_point()
            ]
            only_first = len([key for key in weights if key not in merge.mixed_keys])
            dropped = len([key for key in merge.models[1] if key not in merge.first and key not in MARKERS])
        return MergeReport(
            file=file,
            models=tuple(model.name for model in merge.models),
            mix=self.options,
            tensors=len(merge),
            mixed=len(merge.mixed_keys & set(merge)),
            only_first=only_first,
            dropped=dropped,
            vae=len(merge.vae),
            discarded=merge.discarded,
            config=config,
            purpose=PURPOSE_BY_CHANNELS.get(merge.in_channels, ""),
            dilution=self.meter.report(),
        )

    def _metadata(self, name: str) -> dict[str, str]:
        models, saving = self.lazy_merge.models, self.saving
        fields = metadata.essential_metadata(models[0])
        if saving.copies_metadata:
            fields = metadata.copy_metadata(models, name)
        predicted = self.prediction.prediction
        is_unmarked_velocity = predicted == "v_prediction" and V_MARKER not in self.lazy_merge
        if predicted is not None and (PREDICTION_KEY in fields or is_unmarked_velocity or self.prediction.is_mixed):
            fields[PREDICTION_KEY] = MODEL_SPEC_PREDICTIONS[predicted]
        if saving.keeps_recipe:
            fields |= metadata.recipe_metadata(models, self._recipe_fields())
        return {"format": "pt", **fields, **metadata.as_strings(saving.metadata)}

    def _recipe_fields(self) -> dict[str, Any]:
        """Return the fields of A1111's recipe that follow the hashes, and those that only velatura's modes have."""
        options, saving = self.options, self.saving
        fields: dict[str, Any] = {
            "interp_method": options.merge_mode.title,
            "multiplier": options.strength,
            "save_as_half": saving.dtype == "float16",
            "custom_name": "",
            # in A1111 0 is "A, B or C", which tries A first
            "config_source": ["any", "B", "C", "none"].index(saving.config) if saving.config != "A" else 0,
            "bake_in_vae": saving.vae.name if saving.vae else "None",
            "discard_weights": saving.discard,
            "is_inpainting": self.lazy_merge.in_channels == 9,
            "is_instruct_pix2pix": self.lazy_merge.in_channels == 8,
        }
        if options.blocks is not None:
            fields["blocks"] = options.blocks
        if options.merge_mode.share is not None:
            fields |= {"share": options.share, "seed": options.seed}
        return fields

    def _find_config(self, out: Path) -> Path | None:
        """Return the .yaml file to copy, None if there is none or none is wanted."""
        choice, models = self.saving.config, self.lazy_merge.models
        if choice == "none":
            return None
        candidates = models
        if choice != "any":
            index = "ABC".index(choice)
            candidates = models[index : index + 1]
        for model in candidates:
            if model.path and model.path.is_file():
                config = model.path.with_suffix(".yaml")
                if not config.is_file() or config == out.with_suffix(".yaml"):
                    continue
                in_yaml, predicted = read_yaml_prediction(model.path), self.prediction.prediction
                if in_yaml is None or predicted in {None, in_yaml}:
                    return config
                if choice != "any":
                    warn(
                        f"{config.name} says {in_yaml}, and the merge is saved as {predicted}: programs that follow "
                        "the copied .yaml will paint otherwise; set config to none if that is wrong"
                    )
                    return config
        if choice != "any":
            raise BadFile(f"there is no .yaml file beside model {choice}: set config to none, or to another model")
        return None
