"""Numerical kernels: arrays in, arrays out. They import nothing of Dask, zarr or the file system."""
