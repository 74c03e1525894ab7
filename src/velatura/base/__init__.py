"""The frozen model: UNet, autoencoder, text encoder and noise schedule."""
