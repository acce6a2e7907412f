"""The benchmarks: a dataset and a network in the report's notation, by name."""

# name: (dataset, network)
BENCHMARKS = {
    f"{dataset}-{depth}": (dataset, f"{shape}-{rest}")
    for dataset, shape in (("digits", "28x28"), ("mnist", "28x28"), ("cifar10", "3x32x32"))
    for depth, rest in (("2c", "6c5-16c5-120-84-10"), ("3c", "6c3-16c3-36c4-240-120-84-10"))
} | {
    # Not the report's: the networks that papers on pruning compare at (Han et al. 2015, tables 3 and 4).
    "lenet-300-100": ("mnist", "28x28-300-100-10"),
    "lenet-5": ("mnist", "28x28-20c5-50c5-500-10"),
}
