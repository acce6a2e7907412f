"""A pruned network where it is used: small files, fewer neurons, ONNX, one C99 file, and what it costs.

    small = remove_dead_neurons(model, (1, 28, 28))      # dead_neurons: the same function in fewer neurons
    small = share_weights(small, clusters=64)            # quantization: few distinct weights
    save("model.prn", small, "entropy")                  # storage
    to_onnx(small, (1, 28, 28), "model.onnx")            # onnx
    source = to_c(small, (1, 28, 28), quantize=8)        # c99
    classify(loads_of(small, (1, 28, 28)), "pruned").pj  # energy
"""
