"""A fake object detector."""

import numpy as np
import onnx.parser
from onnx import numpy_helper

from app.images import LABELS


def detector() -> bytes:
    """A fake detector: a dog in the middle, the surer the brighter the image, and a cat."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        detector (float[1,3,416,416] images) => (float[1,3549,85] output) {
            sides = Shape <start = 2> (images)
            grids = Div (sides, strides)
            counts = ReduceProd (grids, across)
            cells = ReduceSum (counts, down)
            finer = Slice (counts, zero, two, zero)
            corner = ReduceSum (finer, down)
            coarse = Gather (grids, two)
            centre = Div (coarse, two)
            row, column = Split <axis = 1, num_outputs = 2> (centre)
            height, width = Split <axis = 1, num_outputs = 2> (coarse)
            before = Mul (row, width)
            within = Add (before, column)
            middle = Add (corner, within)
            indices = Concat <axis = 0> (middle, corner)
            bright = ReduceMean <keepdims = 0> (images)
            share = Mul (bright, scale)
            seen = Mul (dog, share)
            rows = Add (fixed, seen)
            total = Reshape (cells, flat)
            shape = Concat <axis = 0> (total, columns)
            empty = ConstantOfShape (shape)
            filled = ScatterND (empty, indices, rows)
            output = Unsqueeze (filled, zero)
        }"""
    )
    fixed, dog = np.zeros((2, 85), np.float32), np.zeros((2, 85), np.float32)  # in the middle, in the corner
    fixed[:, 2:5] = 1.0
    dog[0, 5 + LABELS.index("dog")] = 1.0
    fixed[1, 5 + LABELS.index("cat")] = 0.5
    constants = {
        "strides": np.array([[8], [16], [32]]),
        "columns": np.array([85]),
        "fixed": fixed,
        "dog": dog,
        "scale": np.array(1 / 255, np.float32),
        **{
            name: np.array([value])
            for name, value in (("zero", 0), ("flat", -1), ("two", 2), ("down", 0), ("across", 1))
        },
    }
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())
