"""Reports of runs: one page in a file, or served while a run goes on."""
