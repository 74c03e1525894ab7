"""Sentences by vision-language models of transformers, such as BLIP, from a local folder."""

import importlib
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from velatura.errors import BadDataset
from velatura.formats.folder_weights import weights
from velatura.tensors import UNREADABLE

BEAMS, LEAST, MOST = 1, 24, 48  # the webui's own for BLIP: beams, and length in tokens


class Sentences:
    """Describes pictures in a sentence."""

    def __init__(self, folder: Path) -> None:
        hub: Any = importlib.import_module("transformers")
        hub.utils.logging.disable_progress_bar()
        try:
            config = hub.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._processor = hub.AutoProcessor.from_pretrained(folder, local_files_only=True)
            state = dict(weights(folder, "model", "pytorch_model").tensors)
            kind = hub.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()
        except (OSError, *UNREADABLE) as error:
            said = " ".join(str(error).split())[:200]
            raise BadDataset(f"{folder} holds no captioner that can be opened ({said}); download it again") from None

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """One sentence."""
        inputs = self._processor(images=image, return_tensors="pt")
        ids = self._model.generate(**inputs, num_beams=BEAMS, min_length=LEAST, max_length=MOST)
        (said,) = cast("list[str]", self._processor.batch_decode(ids, skip_special_tokens=True))
        return " ".join(said.split())
