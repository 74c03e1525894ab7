"""LoRAs and their relatives (DoRA, LoHa, LoKr, OFT, (IA)^3, GLoRA) in files of kohya, diffusers, peft and cloneofsimo.

`keys` and `names` decide what any program's key means; `detect` recognises a LoRA, `read_lora` opens it, and
`write_kohya`, `write_diffusers` and `write_peft` save it. Open `read_lora` first, then `keys`.
"""
