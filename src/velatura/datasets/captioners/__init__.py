"""Models that write captions.

ONNX taggers, BLIP and other transformers models, and the tiny base. Each has `caption(image)`, the protocol
`Captioner` of ../write_captions.py. Open tiny_captioner.py first: it needs no download.
"""
