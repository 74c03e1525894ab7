"""Make LoRAs from two models (extract.py), from several LoRAs (combine.py) or from a hypernetwork.

extract.py is the file to open first; svd.py holds the low-rank approximations that extract.py and combine.py use.
model_layers.py maps a model's weights to diffusers' and kohya's layer names.
"""
