"""A1111's HTTP API: its routes, fields and defaults, answered from our own jobs, pictures and library.

routers.py lists the routes and is the file to open first; recipes.py turns a request into recipes.
"""
