"""Numbers and pictures for people.

page.py writes report.html: numbers as JSON, and the program that shows them, put into one file by
html_page.py. page.js has its sections, charts.js the learning curves, intervals and confusion
matrices, slices.js the slices, elements.js tables. plots.py draws the progress.png of a run that
still goes on.
"""
