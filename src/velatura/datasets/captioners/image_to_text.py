"""Captions in sentences by vision-language models of transformers, such as BLIP, from a local folder."""

import importlib
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from velatura.errors import BadDataset
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.tensors import DAMAGED_FILE_ERRORS

BEAM_COUNT, MIN_TOKENS, MAX_TOKENS = 1, 24, 48  # the web UI's defaults for BLIP


class TransformersCaptioner:
    """Captioner that describes a picture in a sentence.

    Args:
        folder: Folder of a transformers model for image to text.

    Raises:
        BadDataset: The folder's model cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            state = dict(open_weights(folder, "model", "pytorch_model").tensors)
            model_class = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model = model_class.from_pretrained(
                    None, config=config, state_dict=state, dtype=torch.float32
                ).eval()
        except (OSError, *DAMAGED_FILE_ERRORS) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadDataset(f"the captioner in {folder} cannot be opened ({reason}): download it again") from None

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """Return one sentence about an RGB picture."""
        inputs = self._processor(images=image, return_tensors="pt")
        ids = self._model.generate(**inputs, num_beams=BEAM_COUNT, min_length=MIN_TOKENS, max_length=MAX_TOKENS)
        (sentence,) = cast("list[str]", self._processor.batch_decode(ids, skip_special_tokens=True))
        return " ".join(sentence.split())
