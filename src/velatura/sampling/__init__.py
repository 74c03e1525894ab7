"""Generate pictures: a recipe in, a picture out.

Open `generate.py` first, then `job.py` (one picture, ready to run) and `pipeline.py` (the denoising loop of a batch).
The recipe and its text form are in `recipe/`, the samplers and noise schedules in `samplers/`.
"""
