"""Commands about files: `velatura list`, `show`, `convert` and `pull`.

commands.py holds all but `pull` and is the file to open first; show.py and show_composition.py print what a file is.
"""
