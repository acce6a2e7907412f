"""A pruned network where it is used: small files, fewer neurons, ONNX, one C99 file, and what it costs.

- ``dead_neurons``: ``remove_dead_neurons(model, (1, 28, 28))``, the same function in fewer neurons
- ``quantization``: ``share_weights(model, clusters=64)``, few distinct weights
- ``storage``: ``save("model.prn", model, "entropy")``
- ``onnx``: ``to_onnx(model, (1, 28, 28), "model.onnx")``
- ``c99``: ``to_c(model, (1, 28, 28), quantize=8)``
- ``energy``: ``classify(loads_of(model, (1, 28, 28)), "pruned").pj``
"""
