"""Say what a file is without a base.

`inspect` reads only names and shapes of any file, `overlay` opens an overlay and reports on it, `compatibility` says
which programs open a hypernetwork. Open `inspect` first.
"""
