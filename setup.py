"""Packaging: the CUDA sources in kernels/ are installed as data of the package."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1] for line in (here / "smlmcore/__init__.py").read_text().splitlines() if "__version__ =" in line
)

setup(
    name="smlmcore",
    version=version,
    description="Single-molecule localization microscopy on NumPy and CuPy arrays, learned without labels",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["smlmcore", "smlmcore.*"]), "smlmcore.kernels"],
    package_dir={"smlmcore.kernels": "kernels"},
    package_data={
        "smlmcore": ["*.h", "napari.yaml"],
        "smlmcore.localize": ["*.npz"],
        "smlmcore.fit": ["*.template"],
        "smlmcore.kernels": ["*.cu", "*.cuh"],
    },
    install_requires=[
        "numpy>=2.0",
        "scipy>=1.13",
        "numba>=0.60",
        "tifffile>=2024.7",
        "h5py",
        "pyyaml",
        "platformdirs",
        "matplotlib",
        "pillow",
        "tqdm",
    ],
    extras_require={
        "gpu-cuda12": ["cupy-cuda12x>=13"],
        "gpu-cuda13": ["cupy-cuda13x>=13.6"],
        "cudnn-cuda12": ["nvidia-cudnn-frontend>=1.10", "nvidia-cudnn-cu12>=9"],
        "cudnn-cuda13": ["nvidia-cudnn-frontend>=1.10", "nvidia-cudnn-cu13>=9"],
        "files": ["zarr>=3", "imagecodecs", "fsspec[http]"],
        "test": [
            "pytest>=8",
            "pytest-benchmark",
            "pytest-xdist",
            "ruff",
            "nvidia-cuda-nvrtc>=13",
            "dask",
            "distributed",
            "zarr>=3",
            "imagecodecs",
            "fsspec[http]",
            "pandas",
            "tensorboardX",
            "tensorboard",
        ],
        "board": [
            "tensorboardX",
            "crc32c",
        ],  # the latter makes its checksums, which in Python alone cost as much as Board
        "dask": ["dask", "distributed"],
        "napari": ["napari"],
        "bench": [
            "pytest-benchmark",
            "tensorboardX",
            "crc32c",
            "bm3d",
            "picassosr",
            "threadpoolctl",
            "torch",
            "torch-interpol",
            "scikit-image",
            "psf-generator",
            "psfmodels",
        ],
    },
    entry_points={
        "console_scripts": ["smlmcore = smlmcore.cli:command"],
        "napari.manifest": ["smlmcore = smlmcore:napari.yaml"],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
    ],
)
