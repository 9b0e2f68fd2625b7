"""`eastwest bench split`: which split of workers serves most requests within the targets, simulated
or live, by the same workload, search and report."""
