"""The evaluation: a paper's tables beside our own runs of them, and the same study of anybody's trace."""
