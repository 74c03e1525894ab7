"""Read and write textual inversion embeddings and aesthetic embeddings.

The formats are A1111's .pt files and pictures, sd-scripts' safetensors and diffusers' files. Open `read_embedding`
first, then `write_embedding`; `aesthetic` is for the files of A1111's extension of that name.
"""
