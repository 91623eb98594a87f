"""The captioning recipe: data, training, export and publishing."""
