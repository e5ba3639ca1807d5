"""Seeing it: boxes on images, plots, tables and the HTML report."""
