"""What only one kind of training needs: class pictures and results of DreamBooth, pivotal tuning (a LoRA with
embeddings), aesthetic gradients, files for A1111.

Open `class_images.py` first. The training loop itself does not depend on the kind.
"""
