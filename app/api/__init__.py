"""HTTP: schemas, routes, and what stands before them."""
