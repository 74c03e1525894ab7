"""The run folder on disk: plan, log, snapshots, previews and loss plot, so that a run can be stopped at any moment.

Open `folder.py` first: `RunFolder` lists every file. `log.py` has the lock and the atomic writes.
"""
