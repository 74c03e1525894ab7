"""Compare pictures and losses: X/Y/Z grids as an image or an HTML page, and the report of a training run.

grid.py is the file to open first; grid_page.py writes a grid as one HTML file, training_report.py the page of a run
with its curve. page.html is the frame of all pages, likeness.py compares pictures, and cluster.py runs jobs on Ray.
"""
