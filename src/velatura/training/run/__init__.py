"""The run folder on disk: plan, log, snapshots, previews and loss plot, written so that a run can be interrupted and
resumed at any step.

Open `folder.py` first: `RunFolder` lists every file. `log.py` has the lock and the atomic writes.
"""
