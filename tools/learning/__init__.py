"""A factorial of trainings on the tiny base, judged by pictures: `python -m tools.learning run --work runs/learning`.

Open factors.py first (what is varied), then halving.py (which trials come next) and trial.py (one trial).
"""
