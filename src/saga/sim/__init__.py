"""The simulator: the production scheduler, driven by a heap and a virtual clock over modelled engines."""
