"""Serve velatura over HTTP: jobs in a queue that survives restarts, live events, and our own JSON API.

app.py builds the application and is the file to open first. state.py holds what all routes share, jobs/ runs the work,
api/ has our own routes, guard.py and limits.py refuse what must not come in.
"""
