"""Read and write LoRAs and their relatives (DoRA, LoHa, LoKr, OFT, (IA)^3, GLoRA) of kohya, diffusers, peft and
cloneofsimo. `keys` maps any program's key to kohya's layer name and LyCORIS's tensor name; `detect` recognises a
LoRA by its keys. Open `read_lora` first, then `keys`.
"""
