"""What is special to one kind of training: DreamBooth output and class images, pivotal tuning (LoRA with
embeddings), aesthetic gradients, files for A1111.

Open `dreambooth.py` first. The training loop itself does not depend on the kind.
"""
