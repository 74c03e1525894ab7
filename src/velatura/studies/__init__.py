"""Studies that train many overlays on the same pictures: which kind do I need, and which settings learn best?

study.py compares kinds: every kind under one budget (trials.py), judged alike (results.py), with a page (report.py).
sweep.py compares settings of one kind by successive halving: candidates.py lists what is tried, sweep_plan.py checks
it, sweep_trials.py trains a trial to the end of a round, and sweep_results.py says which one wins.
"""
