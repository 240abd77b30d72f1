"""Making data sets: scan, prepare, tar shards, synthetic videos."""
