"""What people look at: benchmark tables, plots, and the machinery that measures for them."""
