"""Read and write whole base models: single-file checkpoints under LDM's names, and diffusers folders.

`ldm_config` derives a model's configuration from the shapes of its tensors, `ldm_keys` and `ldm_text` translate names,
`ldm_families` decides which model a file is. Open `single_file` first, then `diffusers_folder`.
"""
