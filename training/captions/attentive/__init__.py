"""The captioner that attends to an image grid and to the words of detected objects."""
