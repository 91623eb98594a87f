"""The digit-reader recipe: data, training, export and publishing."""
