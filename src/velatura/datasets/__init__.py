"""A folder of pictures made ready to train on."""
