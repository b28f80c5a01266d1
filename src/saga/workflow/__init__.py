"""What agents will do next, learned from what they did: workflow graphs, gap models, forecasts, hints."""
