"""Read and write textual inversion embeddings (A1111's .pt and pictures, sd-scripts' safetensors, diffusers' files)
and aesthetic embeddings of A1111's extension. Open `read_embedding` first.
"""
