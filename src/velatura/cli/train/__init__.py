"""Run the commands `velatura train KIND` and `velatura resume`, one file for each kind of overlay.

Every kind has the options of options.py and its own. Open session.py first: it opens the base, prints the plan, and
runs the training.
"""
