"""Put a base together from parts of several files: a UNet, text encoders and an autoencoder.

assemble.py holds `read` and is the file to open first; found_parts.py looks into one file or folder, unet_names.py and
text_names.py recognise models by the names of their tensors, model_part.py is one model before it is built.
"""
