"""What the tests of the package share."""


def pytest_configure(config):
    """Let torchvision be imported beside a CPU build of torch, by others too: in the process that runs tests."""
    if config.getoption("dist") == "no":
        import pruning.study.vision  # noqa: F401
