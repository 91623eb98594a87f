"""The commands of `seqserve` that need no server: each imports what it runs, to start fast."""
