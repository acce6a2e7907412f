"""Let torchvision be imported beside a CPU build of torch, before transformers imports it."""

import pruning.study.vision  # noqa: F401
