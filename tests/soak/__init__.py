"""Long tests of the nightly job, run by hand: `make soak` and `make soak-kill`."""
