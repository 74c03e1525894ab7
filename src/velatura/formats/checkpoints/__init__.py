"""Read and write whole base models: single-file checkpoints under LDM's names, and diffusers folders.

`ldm_config` derives a model's configuration from the shapes of its tensors, `ldm_keys` and `ldm_text` translate names,
`ldm_families` decides which model a file is. Open `single_file` first, then `diffusers_folder`.
"""

# Names in a diffusers folder. They stand here because downloads need them without torch.
INDEX_FILE = "model_index.json"
# In the order of preference, as in diffusers: safetensors before torch files, full precision before half.
WEIGHTS_SUFFIXES = ("safetensors", "bin")
VARIANTS = ("", ".fp16")
SHARD_NUMBER = r"-\d{5}-of-\d{5}"
