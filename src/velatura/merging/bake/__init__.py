"""Bake overlays into the weights of a copy of a base, so that they cost nothing at inference and every program can
use them.

bake.py is the file to open first; weight_deltas.py adds LoRAs and differences, hypernet_maps.py and fold.py fold
hypernetworks into to_k, to_v and to_out. Where a hypernetwork is not linear, calibration.py records contexts and
regression.py fits an affine map to them.
"""
