"""What to keep in a cache, where and how long: policies only, no blocks and no clock."""
