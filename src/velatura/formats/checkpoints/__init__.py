"""Read and write whole base models.

single-file checkpoints under LDM's names, and diffusers folders. Shapes tell the configuration (`ldm_config`), tables
translate the keys (`ldm_keys`, `ldm_text`), `ldm_families` says which model a file is. Open `single_file` first, then
`diffusers_folder`.
"""
