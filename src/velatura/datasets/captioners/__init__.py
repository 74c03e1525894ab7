"""Models that write captions: ONNX taggers (WD14, DeepDanbooru), BLIP and other transformers models, the tiny base.

Open `captioner.py` first: `open_captioner` opens each of them, and the protocol `Captioner` says what they have in
common.
lint_captions.py finds flaws in captions, whoever wrote them.
"""
