"""Bake overlays into the weights of a copy of a base, so that they cost nothing more and every program can use them.

bake.py is the file to open first; weight_deltas.py adds LoRAs and differences, hypernet_maps.py and fold.py fold
hypernetworks into to_k, to_v and to_out. calibration.py and regression.py fit those that are not linear.
"""
