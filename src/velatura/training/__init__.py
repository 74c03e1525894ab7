"""Train an overlay on a folder of captioned pictures: a `Plan` goes in, an overlay and a run folder come out.

`train.py` is the entry (`train`, `resume`), `loop.py` runs the steps, `trainer.py` takes one step. `data/` encodes
pictures and captions, `run/` is the folder on disk, `kinds/` holds what only one kind of training needs. Open
`plan.py` first: it has every option.
"""
