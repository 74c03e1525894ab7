"""Show pictures and losses side by side: X/Y/Z grids as an image or an HTML page, and the report of a training run.

grid.py is the file to open first; grid_page.py writes a grid as one HTML file, training_report.py the page of a run,
loss_curve.py its SVG curve. The HTML templates lie beside them as grid.html and report.html.
"""
