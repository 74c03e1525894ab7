"""Reports on files of weights, made without a base.

`inspect` tells from names and shapes what any file is, with `detectors` for every kind; `overlay` opens an overlay and
reports on it, `compositions` on a composition, `compatibility` on other programs. Open `inspect` first.
"""
