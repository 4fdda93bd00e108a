"""What all tests share: nothing is downloaded, and tests for a GPU are skipped where there is none."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("setuptools"):  # a machine that only runs the GPU tests may not have it
    import setuptools  # noqa: F401  # before anything takes the stdlib's distutils, beside which it (and so vLLM) fails

# Before any library that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models are tiny: a second thread gains nothing on an idle machine. On a busy one it waits for milliseconds at each
# matrix product (a test of 1.7 s took 50 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("hypothesis"):  # a machine that only runs the GPU tests may not have it
    from hypothesis import settings

    # Other work on the same cores must not fail a test; 50 examples keep the whole suite short.
    settings.register_profile("raft", deadline=None, max_examples=50)
    settings.load_profile("raft")


@pytest.fixture
def same_process():
    """For tests of a run that sets the environment and the threads of the process that starts it."""
    import torch

    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="module")
def made_up_data(tmp_path_factory):
    """A data folder like the real one, of texts made up for it, with nltk's data for lm-eval; skips without lm-eval."""
    from tests.raft.real_rows import write

    pytest.importorskip("lm_eval.tasks", reason="IFEval's checks are lm-eval's")
    folder = write(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder / "nltk_data"))
        yield folder
