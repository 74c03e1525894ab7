"""Find the overlays and embeddings that prompts name, attach them while pictures are made, and find other files.

Open `overlays.py` first (tags such as `<lora:ink:0.8>`), then `embeddings.py` (names among the words) and
`attached.py` (what a batch attaches). `resources.py` adds tags for overlays that a recipe only lists. `file_hashes.py`
computes the hashes that recipes record of their files, `missing.py` finds what a recipe needs and a library lacks, and
`token_count.py` counts the tokens of a prompt with the embeddings in it. `faces.py` finds the networks that restore
faces, and applies them.
"""
