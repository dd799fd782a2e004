"""What runs on a device in the tests: a bundle, inputs from one .npz, outputs into another. No torch, no compiler."""

import sys

import numpy as np

import whet

bundle, inputs, outputs = sys.argv[1:]
module = whet.load(bundle)
results = module(*np.load(inputs).values())
results = results if isinstance(results, tuple | list) else [results]
np.savez(outputs, **{str(index): array for index, array in enumerate(results)})
print("target:", module.manifest.target.name)
print("modules:", sorted(set(sys.modules) & {"torch", "tvm"}))
