"""Noise that depends on the seed of each picture and on nothing else.

Open `seeded.py` first: it draws the noise of a batch. `philox.py` imitates the random numbers of NVIDIA GPUs, and
`brownian.py` makes the random paths that the SDE samplers take their noise from.
"""
