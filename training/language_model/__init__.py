"""The language-model recipe: data, training, export and publishing."""
