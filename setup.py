"""Maps the folders of the repository to the two import packages; pyproject.toml holds the rest."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["raft", "raft.*"]), *find_packages("kernels")],
    package_dir={"raft_kernels": "kernels/raft_kernels"},
    package_data={"raft_kernels": ["py.typed"], "raft.demo": ["base/*"], "raft.report": ["templates/*"]},
)
