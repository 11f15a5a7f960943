"""The public data layouts that are known by sight, one file each."""
