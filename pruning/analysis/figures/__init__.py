"""The figures: records or their table in, a matplotlib figure out.

    >>> figure = cycle()
    >>> figure.get_label()
    'The cycle: train, prune below the thresholds, retrain, and again while the requirement is met.'

A method has one colour, one marker and one hatch in every figure, so that it is recognized without
colour too. Points and bars are means over seeds; error bars span from the smallest to the largest
seed. The same records give the same bytes. Most axes are drawn with matplotlib, not with seaborn's
categorical plots: those can neither make single points hollow nor count what was not reached.
"""

from pruning.analysis.figures.claims import claim
from pruning.analysis.figures.comparison import frontier, overview
from pruning.analysis.figures.curves import sensitivity, tradeoff
from pruning.analysis.figures.drawings import (
    benchmarks_table,
    connections,
    cycle,
    has_connections,
    implementation,
    iterative_pruning,
)  # fmt: skip
from pruning.analysis.figures.results import significant_synapses, training_effort
from pruning.analysis.figures.runs import layer_densities, learning_curve, weight_histograms
from pruning.analysis.figures.style import LOOKS, benchmarks, look, ordered, percent, png, save, spread, title
from pruning.study.paths import figures_folder as folder

__all__ = [
    "LOOKS", "benchmarks", "benchmarks_table", "claim", "connections", "cycle", "folder", "frontier",
    "has_connections", "implementation", "iterative_pruning", "layer_densities", "learning_curve", "look",
    "ordered", "overview", "percent", "png", "save", "sensitivity", "significant_synapses", "spread", "title",
    "tradeoff", "training_effort", "weight_histograms",
]  # fmt: skip
