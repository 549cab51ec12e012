"""Tables and plots from stored cells: imports neither torch nor a plug-in."""
