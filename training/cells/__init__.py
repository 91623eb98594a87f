"""The comparison of the six cells: the same tasks, recipes and numbers of parameters, several seeds, one report."""
