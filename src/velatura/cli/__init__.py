"""Run velatura from the command line, as `velatura` or `python -m velatura`: one file for each command or group.

Only this folder (and later the server) prints. Open `app.py` first: it lists the commands and turns errors into exit
statuses. `options.py` and `arguments.py` read what was typed; `screen.py` prints.
"""
